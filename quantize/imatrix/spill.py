"""Hidden states of all tokens of a text: in a file, or in memory where they fit."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.codec import empty
from gguf_mla.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gguf_mla.files.output import OutputFile

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int64]

PIECE = 1 << 23  # bytes that are looked at at a time
GAP = 1 << 16  # bytes between rows that are read for less than another reading costs


@dataclass(frozen=True)
class FileStates:
    """States [N, width] in a file, read and written by position: a map of it would count as memory."""

    file: OutputFile
    width: int

    def read(self, start: int, stop: int) -> Floats:
        """Return some rows, [stop-start, width]; MachineError when that fails."""
        found = self._rows(stop - start)
        if self.file.read_into(found, 4 * self.width * start) < found.nbytes:
            raise MachineError("has become shorter while it was used", file=self.file.path, remedy="Run again")
        return found

    def write(self, start: int, rows: Floats) -> None:
        """Replace the rows from `start` on."""
        self.file.write(np.ascontiguousarray(rows, np.float32), 4 * self.width * start)

    def take(self, numbers: Numbers) -> Floats:
        """Return the rows of these numbers."""
        found = self._rows(len(numbers))
        for part, start, stop in self._windows(numbers):
            found[part] = self.read(start, stop)[numbers[part] - start]
        return found

    def put(self, numbers: Numbers, rows: Floats) -> None:
        """Replace the rows of these numbers."""
        for part, start, stop in self._windows(numbers):
            window = rows[part]
            if stop - start > len(window):
                window = self.read(start, stop)
                window[numbers[part] - start] = rows[part]
            self.write(start, window)

    def _rows(self, count: int) -> Floats:
        """Return uninitialised rows that products can use where they lie."""
        return empty((count, self.width), np.dtype(np.float32))

    def _windows(self, numbers: Numbers) -> Iterator[tuple[slice, int, int]]:
        """Yield the parts of rising numbers that are read at a time, and the first and after the last row of each."""
        row = 4 * self.width
        window = numbers // max(1, PIECE // row)
        apart = (np.diff(numbers) > 1 + GAP // row) | (np.diff(window) != 0)
        for first, last in itertools.pairwise([0, *(np.nonzero(apart)[0] + 1).tolist(), len(numbers)]):
            yield slice(first, last), int(numbers[first]), int(numbers[last - 1]) + 1

    def digest(self) -> int:
        """Return a CRC-32 of all rows that there are."""
        found, size = 0, self.file.size
        for start in range(0, size, PIECE):
            found = zlib.crc32(self.file.read(start, min(PIECE, size - start)).data, found)
        return found


@dataclass(frozen=True)
class MemoryStates:
    """States [N, width] in memory."""

    rows: Floats

    def read(self, start: int, stop: int) -> Floats:
        """Return some rows; a copy, for they are written while they are read."""
        return self.rows[start:stop].copy()

    def write(self, start: int, rows: Floats) -> None:
        """Replace the rows from `start` on."""
        self.rows[start : start + len(rows)] = rows

    def take(self, numbers: Numbers) -> Floats:
        """Return the rows of these numbers."""
        return self.rows[numbers]

    def put(self, numbers: Numbers, rows: Floats) -> None:
        """Replace the rows of these numbers."""
        self.rows[numbers] = rows

    def digest(self) -> int:
        """Return 0: what is in memory is gone after a kill."""
        return 0
