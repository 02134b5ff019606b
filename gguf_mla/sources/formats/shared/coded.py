"""Weights as codes of 8 bits times a scale: of a block, a row, a part of a row, or all of them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.codec.ahead import Need
from gguf_mla.errors import SAVED_SO, InputError
from gguf_mla.ggtypes.shared import floats
from gguf_mla.sources.formats.plain import is_plain, plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.sources.safetensors import StoredTensor

CODES = ("F8_E4M3", "I8")
SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0", "U8")


class CodedTensor:
    """A SourceTensor over rows of codes, E4M3 floats or integers.

    weight  [M, N], a byte for each value
    scale   [⌈M/b⌉, ⌈N/c⌉] for blocks of b x c values; where every row has one it may be [M], and a single one [1]
    block   (b, c)
    stored  the format, for people

    value = code · scale of its block, one float32 rounding. The last block of a row or column may be partial.
    """

    raw_type = None  # no ggml type's rows
    values = "F32"
    needs = (Need("FP8 and INT8", f"{__name__}:compile_decoder"),)

    def __init__(self, weight: StoredTensor, scale: StoredTensor, block: tuple[int, int], stored: str) -> None:
        self.weight, self.scale, self.block, self.stored = weight, scale, block, stored

    @property
    def name(self) -> str:
        """The name in the checkpoint."""
        return self.weight.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, slowest first."""
        return self.weight.shape

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows `start:stop` as float32 [rows, cols]."""
        from gguf_mla.sources.formats.shared import kernels  # noqa: PLC0415 - only those who decode pay for numba

        codes = self.weight.read(start, stop)
        out = np.empty(codes.shape, np.float32)
        first = start // self.block[0]
        scales = self._scales(first, -(-(start + len(codes)) // self.block[0]))
        row = start - first * self.block[0]
        kernels.decode_blocks(codes, values_of(self.weight.dtype), scales, row, *self.block, out)
        return out

    def will_read(self, start: int, stop: int) -> None:
        """Ask the OS to fetch rows `start:stop`, and with the first the scales, a small part of the whole."""
        self.weight.will_read(start, stop)
        if start == 0:
            self.scale.will_read(0, self.scale.rows)

    def was_read(self, start: int, stop: int) -> None:
        """Let the OS forget rows `start:stop`."""
        self.weight.was_read(start, stop)

    def _scales(self, first: int, last: int) -> NDArray[np.float32]:
        """Return the scales of block rows `first:last`, float32 [last - first, block columns]."""
        if self.block[0] > 1:
            return self._all_scales[first:last]
        if len(self.scale.shape) == 1:
            return decoded_scales(self.scale).reshape(-1, 1)[first:last]
        return decoded_scales(self.scale, first, last)

    @functools.cached_property
    def _all_scales(self) -> NDArray[np.float32]:
        """All scales, kept after the first rows: those of blocks take a small part of the space of their weights."""
        scales = decoded_scales(self.scale)
        return scales if len(self.scale.shape) == 2 else scales.reshape(-1, 1)


def compile_decoder() -> None:
    """Have the kernel that reads coded tensors, by decoding a zero."""
    from gguf_mla.sources.formats.shared import kernels  # noqa: PLC0415 - see above

    one = np.ones((1, 1), np.float32)
    kernels.decode_blocks(np.zeros((1, 1), np.uint8), values_of("I8"), one, 0, 1, 1, np.empty_like(one))


@functools.cache
def values_of(dtype: str) -> NDArray[np.float32]:
    """Return the value of each of the 256 codes of a dtype of CODES, float32 [256]."""
    if dtype == "I8":
        return np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
    # E4M3: sign, 4 bits of exponent (bias 7), 3 of mantissa; 0x7F is NaN. Moved into a float32's fields a code is its
    # value times 2^-120, subnormals included.
    codes = np.arange(256, dtype=np.uint32)
    values = ((codes & 0x80) << 24 | (codes & 0x7F) << 20).view(np.float32) * np.float32(2.0**120)
    values[(codes & 0x7F) == 0x7F] = np.nan
    return values


def decoded_scales(scale: StoredTensor, first: int = 0, last: int | None = None) -> NDArray[np.float32]:
    """Return rows `first:last` of stored scales as float32; one of SCALE_DTYPES."""
    if is_plain(scale):
        return floats.to_float32(plain(scale).read(first, last), scale.dtype)
    data = scale.read(first, last)
    # E8M0: the byte b means 2^(b-127), and 255 is NaN. 2^-127 is a float32 subnormal, which ldexp rounds exactly.
    scales = np.ldexp(np.float32(1), data.astype(np.int32) - 127)
    return np.where(data == 255, np.float32(np.nan), scales).astype(np.float32)


def check_finite(values: NDArray[np.floating], scale: StoredTensor, start: int, otherwise: str) -> None:
    """Raise InputError for the first of the values [rows, groups] of a scale's rows from `start` that is not finite.

    `otherwise` names what such values can be.
    """
    sound = np.isfinite(values)
    if not sound.all():
        row, group = divmod(int(np.argmin(sound)), values.shape[1])
        raise InputError(
            "has a scale that is not a finite number",
            file=scale.file.name,
            tensor=scale.name,
            expected="finite scales",
            found=f"{otherwise} at row {start + row}, group {group}",
            remedy=SAVED_SO,
        )
