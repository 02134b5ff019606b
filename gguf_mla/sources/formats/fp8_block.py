"""FP8 e4m3 weights with one scale per block, as DeepSeek-V3 is published.

`X.weight` float8_e4m3fn [M, N] and `X.weight_scale_inv` [⌈M/128⌉, ⌈N/128⌉] in float32, E8M0, or E8M0 kept as uint8;
value = weight · scale of its block (multiplied, despite the name), one float32 rounding. The last block of a row or
column may be partial. Source: quantization_config.weight_block_size and DeepSeek-V3's weight description.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.sources.formats.plain import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gguf_mla.sources.safetensors import StoredTensor
    from gguf_mla.sources.tensor import SourceTensor

METHOD = "fp8"
SCALE_SUFFIX = "_scale_inv"

_FORMATS = (None, "e4m3", "float8_e4m3fn")
_SCALE_DTYPES = ("F32", "BF16", "F8_E8M0", "U8")


class Fp8BlockTensor:
    """A SourceTensor over FP8 rows; `scale` is [block rows, block columns], each of `block` values."""

    raw_type = None  # no ggml type's rows
    values = "F32"

    def __init__(self, weight: StoredTensor, scale: StoredTensor, block: tuple[int, int]) -> None:
        self.weight, self.scale, self.block = weight, scale, block

    @property
    def name(self) -> str:
        """The name in the checkpoint."""
        return self.weight.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, slowest first."""
        return self.weight.shape

    @property
    def stored(self) -> str:
        """The format with its block size."""
        return f"FP8 {self.block[0]}x{self.block[1]}"

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows `start:stop` as float32 [rows, cols]."""
        from gguf_mla.sources.formats.shared import kernels  # noqa: PLC0415 - only FP8 checkpoints pay for numba

        codes = self.weight.read(start, stop)
        out = np.empty(codes.shape, np.float32)
        kernels.decode_blocks(codes, _e4m3_values(), self._scales, start, *self.block, out)
        return out

    def will_read(self, start: int, stop: int) -> None:
        """Ask the OS to fetch rows `start:stop`."""
        self.weight.will_read(start, stop)

    def was_read(self, start: int, stop: int) -> None:
        """Let the OS forget rows `start:stop`."""
        self.weight.was_read(start, stop)

    @functools.cached_property
    def _scales(self) -> NDArray[np.float32]:
        """All scales, float32, kept after the first rows: they take 1/16384 of the space of their weights."""
        return _decode_scales(self.scale)


def answers(quantization: Mapping[str, Any]) -> bool:
    """Whether the weights are FP8 in blocks."""
    return quantization.get("quant_method") == METHOD


def tensors(stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any]) -> dict[str, SourceTensor]:
    """Join every FP8 weight with its scales, the other tensors are plain; InputError when one lacks its scales."""
    block = _block_size(quantization)
    found: dict[str, SourceTensor] = {}
    for name, tensor in stored.items():
        if tensor.dtype == "F8_E4M3":
            found[name] = Fp8BlockTensor(tensor, _scale_of(tensor, stored, block), block)
        elif not _is_scale(name, stored):
            found[name] = plain(tensor)
    return found


def _is_scale(name: str, stored: Mapping[str, StoredTensor]) -> bool:
    weight = stored.get(name.removesuffix(SCALE_SUFFIX))
    return name.endswith(SCALE_SUFFIX) and weight is not None and weight.dtype == "F8_E4M3"


def _block_size(quantization: Mapping[str, Any]) -> tuple[int, int]:
    kind, block = quantization.get("fmt"), quantization.get("weight_block_size")
    if kind not in _FORMATS:
        raise InputError("config.json: quantization_config.fmt is not supported", expected="e4m3", found=kind)
    if not (isinstance(block, list) and len(block) == 2 and all(type(side) is int and side > 0 for side in block)):
        raise InputError(
            "config.json: quantization_config.weight_block_size is needed for FP8",
            expected="two numbers, as [128, 128]",
            found=block,
        )
    return block[0], block[1]


def _scale_of(weight: StoredTensor, stored: Mapping[str, StoredTensor], block: tuple[int, int]) -> StoredTensor:
    def refuse(what: str, expected: object, found: object, remedy: str | None = None) -> InputError:
        return InputError(
            what, file=weight.file.name, tensor=weight.name, expected=expected, found=found, remedy=remedy
        )

    name = weight.name + SCALE_SUFFIX
    scale = stored.get(name)
    if scale is None:
        raise refuse("is FP8 and its scales are missing", f"a tensor {name}", "none", "Download the checkpoint again")
    if len(weight.shape) != 2:
        raise refuse("is FP8 and not a matrix", "2 dimensions", list(weight.shape))
    expected = [-(-size // side) for size, side in zip(weight.shape, block, strict=True)]
    if list(scale.shape) != expected:
        raise refuse(f"its scales {name} have the wrong shape", expected, list(scale.shape))
    if scale.dtype not in _SCALE_DTYPES:
        raise refuse(f"its scales {name} have an unknown type", " or ".join(_SCALE_DTYPES), scale.dtype)
    return scale


@functools.cache
def _e4m3_values() -> NDArray[np.float32]:
    """Return the value of each of the 256 codes: sign, 4 bits of exponent (bias 7), 3 of mantissa; 0x7F is NaN."""
    codes = np.arange(256, dtype=np.uint32)
    # Moved into a float32's fields a code is its value times 2^-120, subnormals included.
    values = ((codes & 0x80) << 24 | (codes & 0x7F) << 20).view(np.float32) * np.float32(2.0**120)
    values[(codes & 0x7F) == 0x7F] = np.nan
    return values


def _decode_scales(scale: StoredTensor) -> NDArray[np.float32]:
    data = scale.read()
    if scale.dtype == "F32":
        return data.view(np.float32)
    if scale.dtype == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    # E8M0: the byte b means 2^(b-127), and 255 is NaN. 2^-127 is a float32 subnormal, which ldexp rounds exactly.
    scales = np.ldexp(np.float32(1), data.astype(np.int32) - 127)
    return np.where(data == 255, np.float32(np.nan), scales).astype(np.float32)
