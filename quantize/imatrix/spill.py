"""Hidden states of all tokens of a text: in a file, or in memory where they fit."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.errors import MachineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.files.output import OutputFile

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int64]

PIECE = 1 << 24  # bytes that are looked at at a time


@dataclass(frozen=True)
class FileStates:
    """States [N, width] in a file, read and written by position: a map of it would count as memory."""

    file: OutputFile
    width: int

    def read(self, start: int, stop: int) -> Floats:
        """Return some rows, [stop-start, width]; MachineError when that fails."""
        wanted = 4 * self.width * (stop - start)
        data = self.file.read(4 * self.width * start, wanted)
        if data.size < wanted:
            raise MachineError("has become shorter while it was used", file=self.file.path, remedy="Run again")
        return data.view(np.float32).reshape(-1, self.width)

    def write(self, start: int, rows: Floats) -> None:
        """Replace the rows from `start` on."""
        self.file.write(np.ascontiguousarray(rows, np.float32), 4 * self.width * start)

    def take(self, numbers: Numbers) -> Floats:
        """Return the rows of these numbers, neighbours in one reading."""
        found = np.empty((len(numbers), self.width), np.float32)
        for first, last in _runs(numbers):
            found[first:last] = self.read(int(numbers[first]), int(numbers[first]) + last - first)
        return found

    def add(self, numbers: Numbers, rows: Floats) -> None:
        """Add to the rows of these numbers."""
        for first, last in _runs(numbers):
            start = int(numbers[first])
            self.write(start, self.read(start, start + last - first) + rows[first:last])

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

    def add(self, numbers: Numbers, rows: Floats) -> None:
        """Add to the rows of these numbers."""
        self.rows[numbers] += rows

    def digest(self) -> int:
        """Return 0: what is in memory is gone after a kill."""
        return 0


def _runs(numbers: Numbers) -> list[tuple[int, int]]:
    """Return the parts of rising numbers that are neighbours."""
    ends = np.nonzero(np.diff(numbers) != 1)[0] + 1
    edges = [0, *ends.tolist(), len(numbers)]
    return list(itertools.pairwise(edges))
