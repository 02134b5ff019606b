"""What is fetched when: the ranges that a run has announced, in their order, some requests ahead of those who read.

Memory is bounded: what is asked for and not yet read has at most WINDOW bytes, whatever is read. A range that nobody
has announced, or that is read a second time, is fetched when it is read.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.files import platform
from gguf_mla.remote.layout import Layout, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from gguf_mla.remote.files import HubFile

WINDOW = 80 << 20  # bytes that are asked for and not yet read
KEPT = 16 << 20  # bytes that were read and are kept for a second look
CONNECTIONS = 5
RIPE = 256 << 20  # bytes that are wanted after a run began before it is fetched though more may be added
STALE = 1 << 30  # bytes that are wanted after a run before it is dropped unread
NOTIFIED = 1 << 19  # bytes after whose coming readers look
DIGEST_AHEAD = 48 << 20  # bytes that wait for those before them, to be hashed in their order
MEMORY = WINDOW + KEPT + DIGEST_AHEAD + (32 << 20)  # that reading from the hub takes in all, libraries included


@dataclass(eq=False)
class Fetched:
    """The bytes of a run, as far as they have come; `error` is why no more will."""

    run: Run
    data: NDArray[np.uint8]
    filled: int = 0
    error: BaseException | None = None
    readers: int = 0

    @property
    def whole(self) -> bool:
        """Whether all of it has come."""
        return self.filled == self.run.size


@dataclass
class _Mode(threading.local):
    """What this thread does with ranges that are said to be wanted: nothing, note them, or expect them."""

    noted: list[tuple[HubFile, int, int]] | None = None
    expects: bool = False


@dataclass(eq=False)
class Tape:
    """All ranges that will be read, of all files, in one order."""

    _mode: _Mode = field(default_factory=_Mode)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self._layout = Layout()
        self._waiting: deque[Run] = deque()
        self._fetched: list[Fetched] = []
        self._kept: deque[Fetched] = deque()
        self._held = self._active = 0

    def place(self, say: Callable[[], object]) -> tuple[int, int]:
        """Return the number of the file and the offset of the first range that `say` says is wanted soon."""
        noted = self._said(say)
        return (noted[0][0].number, noted[0][1]) if noted else (-1, 0)

    def measure(self, says: Iterable[Callable[[], object]]) -> tuple[int, int]:
        """Return how many bytes and requests it takes to read what all of these say is wanted soon."""
        layout = Layout()
        for say in says:
            for file, offset, count in self._said(say):
                layout.add(file, offset, count)
        return layout.nbytes, layout.runs

    @property
    def notes(self) -> bool:
        """Whether this thread is only asked what it will want."""
        return self._mode.noted is not None

    def _said(self, say: Callable[[], object]) -> list[tuple[HubFile, int, int]]:
        noted: list[tuple[HubFile, int, int]] = []
        self._mode.noted = noted
        try:
            say()
        finally:
            self._mode.noted = None
        return noted

    def hear(self, say: Callable[[], object]) -> None:
        """Expect that the ranges which `say` says are wanted soon will each be read once, in this order."""
        self._mode.expects = True
        try:
            say()
        finally:
            self._mode.expects = False
        with self._changed:
            self._go_on()

    def heard_all(self) -> None:
        """Expect no more."""
        with self._changed:
            self._layout.close_all()
            self._go_on()

    def begin(self) -> None:
        """Forget what is expected."""
        with self._changed:
            self._layout = Layout()
            self._waiting.clear()
            for fetched in [*self._fetched]:
                self._drop(fetched)
            self._kept.clear()

    def wanted(self, file: HubFile, offset: int, count: int) -> None:
        """Hear that a range is wanted soon; what that means depends on who says so."""
        if self._mode.noted is not None:
            self._mode.noted.append((file, offset, count))
        elif self._mode.expects and count:
            with self._changed:
                if run := self._layout.add(file, offset, count):
                    self._waiting.append(run)

    def read(self, file: HubFile, offset: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bytes at `offset`."""
        at, end = offset, offset + len(out)
        while at < end:
            found = self._take(file, at)
            if found is None:
                stop = self._next_start(file, at, end)
                file.fetch(at, out[at - offset : stop - offset])
            else:
                stop = min(end, found.run.stop)
                self._copy(found, at, out[at - offset : stop - offset])
            at = stop

    def _take(self, file: HubFile, at: int) -> Fetched | None:
        """Return the fetched run that has a byte, asked for now if it has to be; None where none will have it."""
        with self._changed:
            for fetched in (*self._fetched, *self._kept):
                if fetched.run.file is file and fetched.run.start <= at < fetched.run.stop:
                    fetched.readers += 1
                    return fetched
            for run in self._waiting:
                if run.file is file and run.start <= at < run.stop:
                    self._drop_stale(run)
                    fetched = self._start(run)
                    fetched.readers += 1
                    return fetched
        return None

    def _next_start(self, file: HubFile, at: int, end: int) -> int:
        """Return where the next run begins that has bytes up to `end`."""
        with self._changed:
            runs = [*(fetched.run for fetched in (*self._fetched, *self._kept)), *self._waiting]
            return min([run.start for run in runs if run.file is file and at < run.start < end], default=end)

    def _copy(self, fetched: Fetched, at: int, out: NDArray[np.uint8]) -> None:
        begin = at - fetched.run.start
        with self._changed:
            while fetched.filled < begin + len(out) and fetched.error is None:
                self._changed.wait()
        if fetched.filled < begin + len(out) and fetched.error is not None:
            raise fetched.error
        out[:] = fetched.data[begin : begin + len(out)]
        with self._changed:
            fetched.readers -= 1
            fetched.run.was_read(at, at + len(out))
            if not fetched.run.pieces and fetched in self._fetched and fetched.whole:
                self._retire(fetched)
            self._go_on()

    def _go_on(self) -> None:
        """Start requests while there is room."""
        while self._active < CONNECTIONS:
            run = next((run for run in self._waiting if self._is_ripe(run)), None)
            if run is None or (self._held and self._held + run.size > WINDOW):
                return
            self._start(run)

    def _is_ripe(self, run: Run) -> bool:
        return not self._layout.is_growing(run) or self._layout.wanted - run.born >= RIPE

    def _start(self, run: Run) -> Fetched:
        self._layout.close(run)
        self._waiting.remove(run)
        fetched = Fetched(run, np.frombuffer(platform.pages(run.size), np.uint8))
        self._fetched.append(fetched)
        self._held += run.size
        self._active += 1
        threading.Thread(target=self._fill, args=(fetched,), daemon=True, name="gguf-mla-fetch").start()
        return fetched

    def _fill(self, fetched: Fetched) -> None:
        run, notified = fetched.run, 0

        def arrived(nbytes: int) -> None:
            nonlocal notified
            fetched.filled = nbytes
            if nbytes - notified >= NOTIFIED or nbytes == run.size:
                notified = nbytes
                with self._changed:
                    self._changed.notify_all()

        try:
            run.file.source.read(run.start, fetched.data.data, arrived)
            run.file.digest.add(run.start, fetched.data)
        except BaseException as error:
            fetched.error = error
        with self._changed:
            self._active -= 1
            if fetched in self._fetched and fetched.error is not None:
                self._drop(fetched)  # those who wait for it are told; who comes later tries again
            elif fetched in self._fetched and not run.pieces:
                self._retire(fetched)
            self._go_on()
            self._changed.notify_all()

    def _retire(self, fetched: Fetched) -> None:
        """Count a run as read; it is kept for a while."""
        self._drop(fetched)
        self._kept.append(fetched)
        while sum(kept.run.size for kept in self._kept) > KEPT:
            self._kept.popleft()

    def _drop(self, fetched: Fetched) -> None:
        self._fetched.remove(fetched)
        self._held -= fetched.run.size

    def _drop_stale(self, wanted: Run) -> None:
        """Drop what has come long before and was never read."""
        for fetched in [*self._fetched]:
            if fetched.whole and not fetched.readers and wanted.born - fetched.run.born > STALE:
                self._drop(fetched)


TAPE = Tape()
