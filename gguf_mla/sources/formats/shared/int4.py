"""Weights of 4 bits in groups without zero points, which a block of Q4_0 holds as they are.

A block of Q4_0 has 32 values and a float16 scale. Where groups and rows are whole numbers of such blocks, rows are
given as Q4_0 without being decoded, and nothing is lost, unless float16 does not hold a scale. Then it becomes the
nearest that it does hold, and `sentences` says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gguf_mla.sources.formats.shared.coded import check_finite, decoded_scales
from gguf_mla.sources.formats.shared.parts import InParts
from gguf_mla.sources.formats.shared.stored_shape import confirm
from gguf_mla.sources.tensor import Raw

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from gguf_mla.sources.safetensors import StoredTensor

IDLE = 0x88  # two values of zero, whatever the scale
BLOCK = 32  # of Q4_0
LARGEST_HALF = np.float32(65504)
SHOWN = 8  # tensors named in a remark, the most changed first


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


class Int4Tensor(InParts):
    """A SourceTensor over packed rows: value = (nibble - 8) · scale.

    shape   [M, N]
    packed  eight values in a word, int32 [M, ⌈N/8⌉]
    scale   [M, ⌈N/group⌉], one for each `group` values of a row
    size    where the shape is stored, if that has not been looked at yet: it is, with the rows
    """

    values = "F32"

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        packed: StoredTensor,
        scale: StoredTensor,
        group: int,
        size: StoredTensor | None = None,
    ) -> None:
        self.name, self.packed, self.scale, self.group, self._size = name, packed, scale, group, size
        self.shape: tuple[int, ...] = shape
        self.by_rows = packed, scale

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

        codes, scales = self._codes(start, stop), decoded_scales(self.scale, start, stop)
        out = np.empty((len(codes), self.shape[1]), np.float32)
        kernels.decode_groups(codes, scales, self.group, out)
        return out

    def raw(self, start: int, stop: int) -> Raw:
        """Return rows `start:stop` as Q4_0 and a Rounding as remark; InputError for a scale that is not finite."""
        from gguf_mla.sources.formats.shared import kernels  # noqa: PLC0415 - as above

        codes = self._codes(start, stop).reshape(-1, BLOCK // 2)
        scales = self._of_blocks(start, stop)
        halves = np.clip(scales, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)
        out = np.empty((len(codes), 2 + BLOCK // 2), np.uint8)
        kernels.repack_halves(codes, halves.view(np.uint8).reshape(-1, 2), BLOCK // 2, out)
        return Raw(out.reshape(-1), self._roundings(codes, scales, halves, start))

    def _codes(self, start: int, stop: int | None) -> NDArray[np.uint8]:
        """Return the packed values of rows, two in a byte, uint8 [rows, bytes]."""
        confirm(self._size, self.shape)
        self._size = None
        return self.packed.read(start, stop)

    def _of_blocks(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the scale of every block of Q4_0 of rows `start:stop`, float32 [blocks]."""
        scales = decoded_scales(self.scale, start, stop)
        check_finite(scales, self.scale, start, "NaN or Inf")
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


def sentences(found: Iterable[Any]) -> list[str]:
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
