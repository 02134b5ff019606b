"""Importance matrices in the older `.dat` form."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.files import bounds
from gguf_mla.importance.entries import MAX_NAME_BYTES, Contents, StoredSums

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gguf_mla.files.input import InputFile
    from gguf_mla.files.output import OutputFile
    from gguf_mla.importance.entries import Made


BLOCK = 1 << 12  # bytes that are read at a time


class DatParser:
    """A cursor over a `.dat` file, everything int32 and float32, little endian.

    Number of entries; per entry the length of the name, the name, number of calls, number of values, the values; then,
    both optional, the number of chunks, and the length and name of the dataset. A value is the mean over the tokens
    times the number of calls, already 1 times that number where an expert saw no token.
    """

    def __init__(self, file: InputFile) -> None:
        self._file, self._at = file, 0
        self._calls: dict[int, NDArray[np.float64]] = {}
        self._block, self._begin = b"", 0  # what was read last, and where it lies

    def parse(self) -> Contents:
        """Return what the file holds; InputError where it is not sound."""
        most = min((self._file.size - 4) // 16, bounds.TENSORS)  # an entry takes 16 bytes or more
        count = self._within("number of entries", 1, most)
        entries: dict[str, StoredSums] = {}
        for number in range(1, count + 1):
            entry = self._entry(number)
            if entry.name in entries:
                raise InputError("occurs twice", file=self._file.path, tensor=entry.name)
            entries[entry.name] = entry
        chunk_count = self._within("number of chunks", 0) if self._left else 0
        dataset = self._text(self._within("length of the dataset's name", 0, self._left - 4)) if self._left else ""
        return Contents(self._file.path, (dataset,) if dataset else (), chunk_count, None, entries)

    def _entry(self, number: int) -> StoredSums:
        length = self._within("length of a name", 0, min(MAX_NAME_BYTES, self._left - 4), f"entry {number}")
        name = self._text(length)
        calls = self._within("number of calls", 0, entry=name)
        count = self._within("number of values", 1, min((self._left - 4) // 4, bounds.SUMS), name)
        self._at += 4 * count
        # Without a number of calls the values are taken as they are.
        if calls not in self._calls:
            self._calls[calls] = np.array([max(calls, 1)], np.float64)
        return StoredSums(self._file, name, self._at - 4 * count, count, self._calls[calls])

    @property
    def _left(self) -> int:
        return self._file.size - self._at

    def _within(self, what: str, least: int, most: int = 2**31 - 1, entry: str | None = None) -> int:
        """Take an int32 that must lie between two bounds."""
        number = int.from_bytes(self._take(4), "little", signed=True)
        if not least <= number <= most:
            raise InputError(
                f"has an impossible {what}: it is not an importance matrix or was cut off",
                file=self._file.path,
                tensor=entry,
                expected=f"{least} to {most}" if most >= least else "more bytes",
                found=number,
            )
        return number

    def _text(self, length: int) -> str:
        return self._take(length).decode(errors="replace")

    def _take(self, count: int) -> bytes:
        """Return the next bytes; they are read in blocks, because an entry may be as short as its head."""
        start = self._at - self._begin
        if not 0 <= start <= len(self._block) - count:
            size = max(count, min(BLOCK, self._left))
            self._block, self._begin, start = self._file.read(self._at, size).tobytes(), self._at, 0
        self._at += count
        return self._block[start : start + count]


class DatFile:
    """A `.dat` file that is to be written, as llama-imatrix has it: entries that no token reached are left out.

    entries      by tensor name; sums are [n, cols] and counts [n]
    dataset      a name, not a path
    chunk_count  how many chunks of text, each of `chunk_size` tokens
    size         how many bytes it will have
    """

    def __init__(self, entries: Mapping[str, Made], dataset: str, chunk_count: int, chunk_size: int) -> None:
        self._entries = {name: entry for name, entry in sorted(entries.items()) if entry.counts.any()}
        self._chunk_size = chunk_size
        text = dataset.encode()
        self._tail = _int32(chunk_count) + _int32(len(text)) + text
        sizes = (12 + len(name.encode()) + 4 * math.prod(entry.shape) for name, entry in self._entries.items())
        self.size = 4 + sum(sizes) + len(self._tail)

    def write(self, file: OutputFile) -> None:
        """Write all of it; MachineError when that fails."""
        at = _put(file, _int32(len(self._entries)), 0)
        for name, entry in self._entries.items():
            squares, counts = entry.make()[:2]
            calls = -(-int(counts.max()) // self._chunk_size)
            text = name.encode()
            at = _put(file, _int32(len(text)) + text + _int32(calls) + _int32(squares.size), at)
            at = _put(file, _values(squares.reshape(counts.size, -1), counts.reshape(-1, 1), calls).tobytes(), at)
        _put(file, self._tail, at)


def _values(squares: NDArray[np.float32], counts: NDArray[np.float32], calls: int) -> NDArray[np.float32]:
    """Return means times the number of calls; 1 times it where there is no mean."""
    means = np.ones_like(squares)
    np.divide(squares, counts, out=means, where=counts > 0)
    return means * np.float32(calls)


def _int32(number: int) -> bytes:
    return number.to_bytes(4, "little", signed=True)


def _put(file: OutputFile, data: bytes, at: int) -> int:
    file.write(np.frombuffer(data, np.uint8), at)
    return at + len(data)
