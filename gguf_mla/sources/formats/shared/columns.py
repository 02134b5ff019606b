"""Weights that are stored the other way round: [K inputs, N outputs], as integers packed into words of 32 bits.

A row of the weight is a column there, so a few rows are read as a slice of every stored row: rows of the file come in
pieces of bounded size, of which the slice is kept. Memory depends on how many rows are wanted, never on the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.sources.formats.shared.coded import decoded_scales

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gguf_mla.sources.safetensors import StoredTensor

PIECE_BYTES = 1 << 20  # read at a time
WORD = 32  # bits
SCALE_DTYPES = ("F16", "BF16", "F32")


def columns(tensor: StoredTensor, start: int, stop: int, width: int) -> NDArray[np.uint8]:
    """Return columns `start:stop` of a stored matrix whose items have `width` bytes, uint8 [rows, bytes]."""
    out = np.empty((tensor.rows, (stop - start) * width), np.uint8)
    step = max(1, PIECE_BYTES // max(1, tensor.row_bytes))
    for first in range(0, tensor.rows, step):
        last = min(first + step, tensor.rows)
        out[first:last] = tensor.read(first, last)[:, start * width : stop * width]
    return out


def unpacked(words: NDArray[np.uint8], bits: int, order: Sequence[int]) -> NDArray[np.uint8]:
    """Return the integers of words, uint8 [rows, columns]; those at bits i·`bits` belong to column `order[i]`."""
    shifts = np.empty(len(order), np.uint32)
    shifts[list(order)] = np.arange(0, WORD, bits)
    integers = words.view("<u4")[:, :, None] >> shifts & np.uint32((1 << bits) - 1)
    return integers.astype(np.uint8).reshape(len(words), -1)


def packed_columns(tensor: StoredTensor, start: int, stop: int, bits: int, order: Sequence[int]) -> NDArray[np.uint8]:
    """Return columns `start:stop` of a matrix that is packed along its columns, uint8 [rows, stop - start]."""
    pack = len(order)
    first = start // pack
    integers = unpacked(columns(tensor, first, -(-stop // pack), 4), bits, order)
    return integers[:, start - first * pack : stop - first * pack]


def scale_columns(tensor: StoredTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Return columns `start:stop` of stored scales, float32 [groups, stop - start]."""
    out = np.empty((tensor.rows, stop - start), np.float32)
    step = max(1, PIECE_BYTES // max(1, tensor.row_bytes))
    for first in range(0, tensor.rows, step):
        last = min(first + step, tensor.rows)
        out[first:last] = decoded_scales(tensor, first, last)[:, start:stop]
    return out


def weighed(
    integers: NDArray[np.uint8], zeros: NDArray[np.uint8], scales: NDArray[np.float32], group: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Return (integer - zero) · scale turned round, float32 [N, K], one rounding.

    integers  [K, N]
    zeros     [groups, N], and so `scales`
    group     [K], the group of each input
    """
    values = integers.astype(np.float32)
    values -= zeros.astype(np.float32)[group]
    values *= scales[group]
    return np.ascontiguousarray(values.T)


@dataclass(frozen=True)
class Parts:
    """The stored tensors of one weight: what its integers, zero points and scales lie in, and each input's group."""

    integers: StoredTensor
    zeros: StoredTensor
    scales: StoredTensor
    group: StoredTensor | None = None

    def will_read(self, start: int) -> None:
        """Ask the OS to fetch everything, once the first rows are wanted: all of it is needed for any of them."""
        if start == 0:
            for tensor in (self.integers, self.zeros, self.scales):
                tensor.will_read(0, tensor.rows)

    def was_read(self, stop: int) -> None:
        """Let the OS forget everything, once the last rows were read."""
        if stop == self.scales.shape[-1]:
            self.integers.was_read(0, self.integers.rows)

    def refuse(self, name: str, what: str, expected: object, found: object) -> InputError:
        """Return the error for parts that do not belong together."""
        return InputError(what, file=self.integers.file.name, tensor=name, expected=expected, found=found)

    def check(self, name: str) -> None:
        """Raise InputError unless these are matrices of the right types."""
        for tensor, dtypes in ((self.integers, ("I32",)), (self.zeros, ("I32",)), (self.scales, SCALE_DTYPES)):
            if tensor.dtype not in dtypes or len(tensor.shape) != 2 or 0 in tensor.shape:
                expected, found = f"a matrix of {' or '.join(dtypes)}", f"{list(tensor.shape)} of {tensor.dtype}"
                raise self.refuse(name, f"{tensor.name} is not what it should be", expected, found)


def parts_of(base: str, stored: Mapping[str, StoredTensor]) -> Parts:
    """Return the tensors BASE.qweight, .qzeros, .scales and .g_idx; InputError where one but the last is missing."""
    for suffix in (".qzeros", ".scales"):
        if base + suffix not in stored:
            at = stored[base + ".qweight"]
            raise InputError(
                "is packed, and what it is decoded with is missing",
                file=at.file.name,
                tensor=at.name,
                expected=f"a tensor {base}{suffix}",
                found="none",
                remedy="It may lie in a shard that is not there",
            )
    integers, zeros, scales = (stored[base + suffix] for suffix in (".qweight", ".qzeros", ".scales"))
    parts = Parts(integers, zeros, scales, stored.get(base + ".g_idx"))
    parts.check(base + ".weight")
    return parts
