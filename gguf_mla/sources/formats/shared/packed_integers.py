"""Weights as whole numbers of 2 to 8 bits in words of 32, with zero points, or groups of columns in any order."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.errors import SAVED_SO, InputError
from gguf_mla.sources.formats.shared.coded import decoded_scales
from gguf_mla.sources.formats.shared.parts import InParts
from gguf_mla.sources.formats.shared.stored_shape import confirm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.sources.safetensors import StoredTensor

WORD = 32  # bits


def per_word(bits: int) -> int:
    """Return how many integers of these bits a word holds; none lies in two words."""
    return WORD // bits


def unpacked(words: NDArray[np.uint8], bits: int) -> NDArray[np.int16]:
    """Return the signed integers of words, given as bytes [rows, 4·words], the lowest bits first: [rows, integers]."""
    shifts = np.arange(per_word(bits), dtype=np.uint32) * np.uint32(bits)
    integers = words.view("<u4")[:, :, None] >> shifts & np.uint32((1 << bits) - 1)
    signed: NDArray[np.int16] = integers.reshape(len(words), -1).astype(np.int16) - np.int16(1 << bits - 1)
    return signed


class IntegerTensor(InParts):
    """A SourceTensor over packed rows: value = (integer - zero point) · scale, one float32 rounding.

    shape   [M, N]
    packed  int32 [M, ⌈N/p⌉], p integers of `bits` in a word
    scale   [M, groups], [M] or [1]
    group   how many columns that follow each other share a scale
    zero    zero points: int32 [⌈M/p⌉, groups], p rows in a word, or int8 [M, groups]; None where they are 0
    order   int32 [N], the group of each column where they do not follow each other
    size    where the shape is stored, if that has not been looked at yet: it is, with the rows
    """

    raw_type = None  # no ggml type's rows
    values = "F32"

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        parts: tuple[StoredTensor, StoredTensor, StoredTensor | None, StoredTensor | None],
        bits: int,
        group: int,
        size: StoredTensor | None = None,
    ) -> None:
        self.name, self.bits, self.group, self._size = name, bits, group, size
        self.shape: tuple[int, ...] = shape
        self.packed, self.scale, self.zero, self.order = parts
        zeros = (self.zero,) if self.zero is not None and self.zero.dtype == "I8" else ()
        self.by_rows = self.packed, *zeros, *((self.scale,) if self.scale.rows > 1 else ())

    @property
    def stored(self) -> str:
        """The format with its bits and group size."""
        return f"INT{self.bits} {'per row' if self.group >= self.shape[1] else f'group {self.group}'}"

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows `start:stop` as float32 [rows, cols]; InputError for a column whose group does not exist."""
        confirm(self._size, self.shape)
        self._size = None
        first, last, _ = slice(start, stop).indices(self.shape[0])
        values = unpacked(self.packed.read(first, last), self.bits)[:, : self.shape[1]].astype(np.float32)
        if self.zero is not None:
            values -= self._zeros(self.zero, first, last)[:, self._groups]
        values *= self._scales(first, last)[:, self._groups]
        return values

    def _scales(self, first: int, last: int) -> NDArray[np.float32]:
        """Return the scales of rows, float32 [rows, groups]; one row where all have the same."""
        if len(self.scale.shape) == 1:
            scales = decoded_scales(self.scale).reshape(-1, 1)
            return scales if len(scales) == 1 else scales[first:last]
        return decoded_scales(self.scale, first, last) if self.scale.rows > 1 else decoded_scales(self.scale)

    def _zeros(self, zero: StoredTensor, first: int, last: int) -> NDArray[np.float32]:
        """Return the zero points of rows, float32 [rows, groups]."""
        if zero.dtype == "I8":
            return zero.read(first, last).view(np.int8).astype(np.float32)
        pack = per_word(self.bits)
        begin = first // pack
        words = zero.read(begin, -(-last // pack)).view("<u4")
        # Turned round, so that the rows of a word follow each other.
        integers = unpacked(np.ascontiguousarray(words.T).view(np.uint8), self.bits).T
        return integers[first - begin * pack : last - begin * pack].astype(np.float32)

    @functools.cached_property
    def _groups(self) -> NDArray[np.intp]:
        """The group of each column, [N]."""
        count = self.scale.shape[-1] if len(self.scale.shape) > 1 else 1
        follow = np.arange(self.shape[1]) // self.group
        if self.order is None:
            return follow
        group = self.order.read().view("<i4").reshape(-1).astype(np.intp)
        if (group == -1).all():  # written so where columns were left in their order
            return follow
        wrong = (group < 0) | (group >= count)
        if wrong.any():
            column = int(np.argmax(wrong))
            raise InputError(
                f"puts column {column} into a group that does not exist",
                file=self.order.file.name,
                tensor=self.order.name,
                expected=f"0 to {count - 1}",
                found=int(group[column]),
                remedy=SAVED_SO,
            )
        return group
