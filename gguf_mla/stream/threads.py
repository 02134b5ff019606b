"""The engine that does tasks in threads of this process."""

from __future__ import annotations

import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from gguf_mla.stream.engine import Done, InLine, read_ahead

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from gguf_mla.stream.engine import Engine, Task, Worker

POLL_SECONDS = 0.1  # an interrupt that comes just before the driver waits does not end the wait
GRACE_SECONDS = 1.0  # for threads to end after an interrupt; one that compiles a kernel takes longer


def engine_of(threads: int) -> Engine:
    """Return the engine for so many threads; one thread is the calling one."""
    return InLine() if threads == 1 else Threads(threads)


class Threads:
    """An engine of `count` threads, which take tasks from one queue in its order."""

    def __init__(self, count: int) -> None:
        self._count = count

    def run(self, tasks: Iterable[Task], worker: Worker) -> Generator[Done]:
        """Do all tasks; what stops the driver, or any thread, ends the others before it is raised here."""
        pool = _Pool(read_ahead(tasks, worker.expect), worker)
        threads = [threading.Thread(target=pool.work, daemon=True) for _ in range(self._count)]
        for thread in threads:
            thread.start()
        try:
            yield from pool.results(self._count)
        except BaseException as error:
            pool.stopping.set()
            join(threads, grace_after(error))
            raise
        join(threads, threading.TIMEOUT_MAX)


class _Pool:
    """What the threads of one run share: the tasks, and a queue of what was done, of errors, and a None at each end."""

    def __init__(self, tasks: Iterator[Task], worker: Worker) -> None:
        self._tasks, self._worker = tasks, worker
        self._lock = threading.Lock()
        self._results: SimpleQueue[Done | BaseException | None] = SimpleQueue()
        self.stopping = threading.Event()

    def work(self) -> None:
        """Do tasks until none is left or the run is stopping."""
        try:
            while (task := self._next()) is not None:
                self._results.put(self._worker.do(task))
        except BaseException as error:
            self.stopping.set()
            self._results.put(error)
        self._results.put(None)

    def results(self, count: int) -> Iterator[Done]:
        """Yield what is done until `count` threads have ended; the first error that one of them had is raised."""
        while count:
            try:
                result = self._results.get(timeout=POLL_SECONDS)
            except Empty:
                continue
            if isinstance(result, BaseException):
                raise result
            if result is None:
                count -= 1
            else:
                yield result

    def _next(self) -> Task | None:
        with self._lock:
            return None if self.stopping.is_set() else next(self._tasks, None)


def grace_after(error: BaseException | None) -> float:
    """Return how many seconds to wait for threads when this has ended a run."""
    return GRACE_SECONDS if isinstance(error, KeyboardInterrupt) else threading.TIMEOUT_MAX


def join(threads: Iterable[threading.Thread], grace: float) -> None:
    """Wait for threads to end, for so many seconds all together."""
    deadline = time.monotonic() + grace
    for thread in threads:
        thread.join(min(threading.TIMEOUT_MAX, max(0.0, deadline - time.monotonic())))
