"""INT4 weights in groups, packed by compressed-tensors, as Kimi-K2-Thinking and K2.5 are published.

`X.weight_packed` int32 [M, ⌈N/8⌉], eight values in each, the first in the lowest bits; `X.weight_scale` [M, ⌈N/g⌉] in
BF16, F16 or F32, one for each group of g values of a row; `X.weight_shape` [2], which is M and N. value = (nibble - 8)
· scale, one float32 rounding. Source: compressed-tensors' description of "pack-quantized".

A block of Q4_0 is the same with 32 values and a float16 scale. Where groups and rows are whole numbers of such blocks,
rows are given as Q4_0 without being decoded, and nothing is lost, unless float16 does not hold a scale. Then it becomes
the nearest that it does hold, and `remarks` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.ggtypes.shared import floats
from gguf_mla.sources.formats import Found
from gguf_mla.sources.formats.plain import PlainTensor, plain
from gguf_mla.sources.tensor import Raw

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from gguf_mla.sources.safetensors import StoredTensor

METHODS = ("compressed-tensors",)
PACKED, SCALE, SHAPE = "_packed", "_scale", "_shape"
REFUSED = {"_zero_point": "zero points", "_g_idx": "columns in another order (actorder)"}

IDLE = 0x88  # two values of zero, whatever the scale
BLOCK = 32  # of Q4_0
LARGEST_HALF = np.float32(65504)
SHOWN = 8  # tensors named in a remark, the most changed first

# What quantization_config says of the weights, and must.
_EXPECTED = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "actorder": None}
_DEFAULTS = {"type": "int", "symmetric": True}
_SCALES_OF_FLOATS = ("F8_E4M3", "F8_E8M0", "U8")
_INTEGERS: dict[str, Any] = {"I32": np.int32, "I64": np.int64}


class Rounding(NamedTuple):
    """That blocks of some rows got another scale because float16 does not hold theirs.

    tensor, row       whose, and the first of the rows
    blocks            how many, without those whose weights are all zero
    change, relative  the largest change of a weight, absolute and as a part of itself
    """

    tensor: str
    row: int
    blocks: int
    change: float
    relative: float


@dataclass(frozen=True)
class Int4Tensor:
    """A SourceTensor over packed rows; `shape` is [M, N], `group` the number of values that share a scale."""

    name: str
    shape: tuple[int, ...]
    packed: StoredTensor
    scale: PlainTensor
    group: int

    values = "F32"

    @property
    def stored(self) -> str:
        """The format with its group size."""
        return f"INT4 group {self.group}"

    @property
    def raw_type(self) -> str | None:
        """Q4_0, where groups and rows are whole numbers of its blocks."""
        return "Q4_0" if self.group % BLOCK == 0 and self.shape[1] % BLOCK == 0 else None

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows `start:stop` as float32 [rows, cols]."""
        from gguf_mla.sources.formats.shared import kernels  # noqa: PLC0415 - only packed checkpoints pay for numba

        codes, scales = self.packed.read(start, stop), self._scales(start, stop)
        out = np.empty((len(codes), self.shape[1]), np.float32)
        kernels.decode_groups(codes, scales, self.group, out)
        return out

    def raw(self, start: int, stop: int) -> Raw:
        """Return rows `start:stop` as Q4_0 and a Rounding as remark; InputError for a scale that is not finite."""
        from gguf_mla.sources.formats.shared import kernels  # noqa: PLC0415 - as above

        codes = self.packed.read(start, stop).reshape(-1, BLOCK // 2)
        scales = self._of_blocks(start, stop)
        halves = np.clip(scales, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)
        out = np.empty((len(codes), 2 + BLOCK // 2), np.uint8)
        kernels.repack_halves(codes, halves.view(np.uint8).reshape(-1, 2), BLOCK // 2, out)
        return Raw(out.reshape(-1), self._roundings(codes, scales, halves, start))

    def will_read(self, start: int, stop: int) -> None:
        """Ask the OS to fetch rows `start:stop`."""
        self.packed.will_read(start, stop)
        self.scale.will_read(start, stop)

    def was_read(self, start: int, stop: int) -> None:
        """Let the OS forget rows `start:stop`."""
        self.packed.was_read(start, stop)
        self.scale.was_read(start, stop)

    def _scales(self, start: int, stop: int | None) -> NDArray[np.float32]:
        """Return the scales of rows as float32 [rows, groups]."""
        return floats.to_float32(self.scale.read(start, stop), self.scale.values)

    def _of_blocks(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the scale of every block of Q4_0 of rows `start:stop`, float32 [blocks]."""
        scales = self._scales(start, stop)
        if not np.isfinite(scales).all():
            row, group = divmod(int(np.argmin(np.isfinite(scales))), scales.shape[1])
            raise InputError(
                "has a scale that is not a finite number",
                file=self.packed.file.name,
                tensor=self.scale.name,
                expected="finite scales",
                found=f"NaN or Inf at row {start + row}, group {group}",
                remedy="The source is damaged, download it again",
            )
        return scales.repeat(self.group // BLOCK, axis=1)[:, : self.shape[1] // BLOCK].reshape(-1)

    def _roundings(
        self, codes: NDArray[np.uint8], scales: NDArray[np.float32], halves: NDArray[np.float16], row: int
    ) -> tuple[Rounding, ...]:
        """Return what the scales of blocks from `row` on have lost as float16, () for nothing; `codes` [blocks, 16]."""
        [lost] = np.nonzero(halves != scales)
        lost = lost[(codes[lost] != IDLE).any(axis=1)]
        if not lost.size:
            return ()
        change = np.abs(halves[lost] - scales[lost].astype(np.float64))
        relative = change / np.abs(scales[lost])
        return (Rounding(self.name, row, int(lost.size), 8 * float(change.max()), float(relative.max())),)


def found(stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any]) -> Found:
    """Join every packed weight with its scales; InputError when one lacks its scales."""
    bases = [base for base in dict.fromkeys(map(_base, stored)) if base is not None and _is_packed(base, stored)]
    if not bases:
        return Found({}, frozenset())
    group = _group_size(quantization)
    for base in bases:
        if (shape := stored.get(base + SHAPE)) is not None:
            shape.will_read(0, 1)  # a hundred thousand reads of a few bytes: asked for together, not one by one
    used = frozenset(base + suffix for base in bases for suffix in (PACKED, SCALE, SHAPE))
    return Found({base: _int4(base, stored, group) for base in bases}, used)


def _base(name: str) -> str | None:
    base, _, part = name.rpartition("_")
    return base if base.endswith(".weight") and "_" + part in (PACKED, SCALE, SHAPE) else None


def _is_packed(base: str, stored: Mapping[str, StoredTensor]) -> bool:
    # Other formats pack floats of 4 bits under the same names, into bytes, and with bytes as scales.
    packed, scale = stored.get(base + PACKED), stored.get(base + SCALE)
    floats4 = scale is not None and scale.dtype in _SCALES_OF_FLOATS
    return not floats4 and (base + SHAPE in stored or (packed is not None and packed.dtype == "I32"))


def remarks(found: Iterable[Any]) -> list[str]:
    """Return in a sentence how many blocks were changed, and by how much; rows that were written twice count once."""
    mine = (one for one in found if isinstance(one, Rounding))
    roundings = sorted(dict.fromkeys(mine), key=lambda rounding: rounding.relative, reverse=True)
    if not roundings:
        return []
    names = list(dict.fromkeys(rounding.tensor for rounding in roundings))
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    blocks = sum(rounding.blocks for rounding in roundings)
    change = max(rounding.change for rounding in roundings)
    said = (
        f"{blocks} blocks of 32 weights in {len(names)} tensors have a scale that no float16 equals, as a Q4_0 "
        f"file needs; the nearest is written, which changes a weight by at most {change:.1e}, and by up to "
        f"{100 * roundings[0].relative:.3g} % of itself. They are in {shown}."
    )
    return [said]


def _group_size(quantization: Mapping[str, Any]) -> int:
    """Return the size of all groups; InputError for a configuration of another format."""
    groups = quantization.get("config_groups")
    entries = list(groups.values()) if isinstance(groups, dict) else []
    schemes = [
        entry["weights"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("weights"), dict)
    ]
    _check("format", quantization.get("format"), "pack-quantized")
    if not schemes or len(schemes) != len(entries):
        raise InputError("config.json: quantization_config.config_groups does not describe weights")
    for scheme in schemes:
        for key, expected in _EXPECTED.items():
            _check(f"weights.{key}", scheme.get(key, _DEFAULTS.get(key)), expected)
    sizes = [scheme.get("group_size") for scheme in schemes]
    if any(type(size) is not int or size < 1 or size != sizes[0] for size in sizes):
        raise InputError(
            "config.json: quantization_config's group_size cannot be used",
            expected="one number above zero",
            found=", ".join(map(str, sizes)),
        )
    return int(sizes[0])


def _check(key: str, found: Any, expected: object) -> None:
    if found != expected or type(found) is not type(expected):
        raise InputError(
            f"config.json: quantization_config: this {key} is not supported",
            expected="null" if expected is None else expected,
            found=found,
            remedy="Convert from a checkpoint in BF16",
        )


def _int4(base: str, stored: Mapping[str, StoredTensor], group: int) -> Int4Tensor:
    at = next(stored[base + suffix] for suffix in (PACKED, SCALE, SHAPE) if base + suffix in stored)

    def refuse(what: str, expected: object, found: object, remedy: str | None = None) -> InputError:
        return InputError(what, file=at.file.name, tensor=base, expected=expected, found=found, remedy=remedy)

    for suffix, what in REFUSED.items():
        if base + suffix in stored:
            raise refuse(f"has {what}, which is not supported", "none", f"a tensor {base}{suffix}")
    if base in stored:
        raise refuse("is there twice", "packed or plain", "both")
    for suffix in (PACKED, SCALE, SHAPE):
        if base + suffix not in stored:
            remedy = "Download the checkpoint again"
            raise refuse(f"its weight{suffix} is missing", f"a tensor {base}{suffix}", "none", remedy)
    packed, scale = stored[base + PACKED], stored[base + SCALE]
    rows, cols = _shape(stored[base + SHAPE])
    for tensor, dtypes, width in ((packed, ("I32",), 8), (scale, ("BF16", "F16", "F32"), group)):
        if tensor.dtype not in dtypes:
            raise refuse(f"{tensor.name} has an unknown type", " or ".join(dtypes), tensor.dtype)
        if tensor.shape != (rows, -(-cols // width)):
            expected = [rows, -(-cols // width)]
            raise refuse(f"{tensor.name} has the wrong shape", expected, list(tensor.shape))
    return Int4Tensor(base, (rows, cols), packed, plain(scale), min(group, cols))


def _shape(tensor: StoredTensor) -> tuple[int, int]:
    kind = _INTEGERS.get(tensor.dtype)
    values = tensor.read().view(kind).reshape(-1).tolist() if kind and tensor.nbytes <= 16 else []
    if len(values) != 2 or min(values) < 1:
        raise InputError(
            "is not the shape of a matrix",
            file=tensor.file.name,
            tensor=tensor.name,
            expected="two numbers above zero, as I32 or I64",
            found=values or f"{list(tensor.shape)} of {tensor.dtype}",
        )
    return values[0], values[1]
