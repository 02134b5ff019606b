"""The threads of a run: chunks from one queue, and one more thread that brings what was written to the disk."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from gguf_mla.files import clock, platform
from gguf_mla.files.output import check_room
from gguf_mla.stream.chunks import Chunk, Sums, is_written, process

if TYPE_CHECKING:
    from gguf_mla.codec.device import Device
    from gguf_mla.files.output import OutputFile
    from gguf_mla.plan.jobs import Importance
    from gguf_mla.sources.tensor import SourceTensor
    from gguf_mla.stream.journal import Journal, NoJournal

Progress = Callable[[int], object]

AHEAD = 16  # chunks the OS is asked to fetch before a thread takes them
START_BYTES = 512 << 20  # written bytes after which the disk is started, so that a sync has little left to wait for
SAVE_SECONDS = 20.0  # the work that a kill can cost; writers are slower during a sync, so it is not done all the time
GRACE_SECONDS = 1.0  # for threads to end after an interrupt; one that compiles a kernel takes longer


class Workers:
    """The threads of one run and what they share.

    done        bytes that were written or taken over
    taken_over  bytes that an earlier run had written
    seconds     by stage of the work, all threads together
    """

    def __init__(
        self,
        queue: Iterator[Chunk],
        sources: Mapping[str, SourceTensor],
        importance: Importance,
        files: Sequence[OutputFile],
        journal: Journal | NoJournal,
        device: Device,
    ) -> None:
        self._queue, self._sources, self._importance, self._device = queue, sources, importance, device
        self._files, self._journal = files, journal
        self._is_big = sum(file.size for file in files) > platform.physical_memory() // 4
        self._ahead: deque[Chunk] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Condition()
        self._stop = threading.Event()
        self._unsaved: list[tuple[Chunk, Sums]] = []
        self._started = 0
        self._error: BaseException | None = None
        self.done = self.taken_over = 0
        self.seconds: Counter[str] = Counter()

    def work(self, count: int, progress: Progress) -> None:
        """Run to the end, reporting from this thread. The first error of any thread is raised here."""
        workers = [threading.Thread(target=self._guarded, args=(self._chunks,), daemon=True) for _ in range(count)]
        threads = [*workers, threading.Thread(target=self._guarded, args=(self._sync,), daemon=True)]
        for thread in threads:
            thread.start()
        try:
            self._wait(workers, progress)
        except BaseException as error:
            self._end(threads, GRACE_SECONDS if isinstance(error, KeyboardInterrupt) else threading.TIMEOUT_MAX)
            raise
        self._end(threads, threading.TIMEOUT_MAX)
        if self._error is not None:
            raise self._error

    def save(self) -> None:
        """Bring what was written to the disk and note it; MachineError if the rest will not fit."""
        with self._wake:
            batch, self._unsaved = self._unsaved, []
        for file in self._files:
            file.sync()
        self._journal.record(batch)
        check_room(self._files, max(self.done, self._journal.nbytes))

    def _wait(self, workers: Sequence[threading.Thread], progress: Progress) -> None:
        reported = 0
        while any(thread.is_alive() for thread in workers):
            for thread in workers:
                thread.join(0.05)
            progress(self.done - reported)
            reported = self.done
        progress(self.done - reported)

    def _end(self, threads: Sequence[threading.Thread], grace: float) -> None:
        self._stop.set()
        with self._wake:
            self._wake.notify_all()
        deadline = time.monotonic() + grace
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _guarded(self, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            self._error = self._error or error
            self._stop.set()
        with self._wake:
            self.seconds.update(clock.take())

    def _chunks(self) -> None:
        while (chunk := self._next()) is not None:
            claimed = self._journal.claims.of(chunk.number)
            source = self._sources[chunk.part.source]
            if claimed is not None and is_written(chunk, source, claimed):
                with self._wake:
                    self.done += chunk.nbytes
                    self.taken_over += chunk.nbytes
            else:
                self._process(chunk, source, claimed)

    def _process(self, chunk: Chunk, source: SourceTensor, claimed: Sums | None) -> None:
        sums = process(chunk, source, self._importance, self._device)
        if self._is_big:
            source.was_read(chunk.start, chunk.stop)
        with self._wake:
            self.done += chunk.nbytes
            if sums != claimed:
                self._unsaved.append((chunk, sums))
            if self.done - self._started >= START_BYTES:
                self._wake.notify_all()

    def _next(self) -> Chunk | None:
        """Take a chunk, and ask for the one that comes AHEAD places later."""
        with self._lock:
            if self._stop.is_set():
                return None
            for chunk in itertools.islice(self._queue, AHEAD + 1 - len(self._ahead)):
                if self._journal.claims.of(chunk.number) is None:
                    self._sources[chunk.part.source].will_read(chunk.start, chunk.stop)
                self._ahead.append(chunk)
            return self._ahead.popleft() if self._ahead else None

    def _sync(self) -> None:
        """Keep the disk busy while the others compute, and save now and then."""
        due = time.monotonic() + SAVE_SECONDS
        while not self._stop.is_set():
            with self._wake:
                self._wake.wait_for(self._has_news, max(0.0, due - time.monotonic()))
                self._started = self.done
            for file in () if self._stop.is_set() else self._files:
                file.start_sync()
            if time.monotonic() >= due and not self._stop.is_set():
                self.save()
                due = time.monotonic() + SAVE_SECONDS

    def _has_news(self) -> bool:
        return self._stop.is_set() or self.done - self._started >= START_BYTES
