"""Ranges that will be wanted, one after the other, joined to requests: few and large, with almost nothing between."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gguf_mla.remote.files import HubFile

RUN_BYTES = 16 << 20  # of a request
FIRST_BYTES = 2 << 20  # of the first, which come soon; each after it has as many more, so that they do not end together
GAP_BYTES = 64 << 10  # that nobody wants, and that are fetched to save a request
WASTED = 256  # for every byte that is fetched in vain, so many are wanted
GROWING = 8  # runs that a range may be added to


@dataclass(eq=False)
class Run:
    """Bytes `start:stop` of a file, fetched by one request.

    born    bytes that were wanted before it began
    pieces  what is wanted of it and was not read yet: [first, last, bytes left], in the order of the file
    """

    file: HubFile
    start: int
    stop: int
    born: int
    pieces: list[list[int]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self.stop - self.start

    def was_read(self, start: int, stop: int) -> None:
        """Take bytes off what is wanted."""
        for piece in self.pieces:
            piece[2] -= max(0, min(stop, piece[1]) - max(start, piece[0]))
        self.pieces = [piece for piece in self.pieces if piece[2] > 0]


class Layout:
    """Joins ranges to runs in the order that they are wanted in.

    wanted  bytes of all ranges
    runs    how many runs there are
    nbytes  bytes of all runs
    """

    def __init__(self) -> None:
        self.wanted = self.runs = self._wasted = self.nbytes = 0
        self._growing: deque[Run] = deque()

    def add(self, file: HubFile, start: int, count: int) -> Run | None:
        """Add a range to a run, and return that if it is a new one; pieces of more than a run become several."""
        self.wanted += count
        for run in tuple(self._growing):
            if run.file is file and self._joins(run, start, start + count):
                return None
        run = Run(file, start, start + count, self.wanted - count, [[start, start + count, count]])
        self.runs += 1
        self.nbytes += count
        self._growing.append(run)
        if len(self._growing) > GROWING:
            self._growing.popleft()
        return run

    def is_growing(self, run: Run) -> bool:
        """Whether a range may still be added to a run."""
        return run in self._growing

    def close(self, run: Run) -> None:
        """Add no more to a run."""
        if run in self._growing:
            self._growing.remove(run)

    def close_all(self) -> None:
        """Add no more to any run."""
        self._growing.clear()

    def _joins(self, run: Run, start: int, stop: int) -> bool:
        """Add a range to a run if it lies in it or goes on where it ends."""
        if run.start <= start and stop <= run.stop:
            return True  # it is wanted twice, and read while it is there
        gap = start - run.stop
        if not 0 <= gap <= GAP_BYTES or self._wasted + gap > GAP_BYTES + self.wanted // WASTED:
            return False
        if stop - run.start > min(RUN_BYTES, FIRST_BYTES * self.runs):
            if gap == 0:
                self.close(run)
            return False
        self._wasted += gap
        self.nbytes += stop - run.stop
        run.stop = stop
        run.pieces.append([start, stop, stop - start])
        return True
