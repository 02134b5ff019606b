"""What becomes of the files of a run as each is complete: they stay where they were built, or a sink takes them.

A sink has a file for good, and its local one may go. A run then goes through the files in their order, and begins one
only when the one before the last has gone: of an output there are never more than two on the disk.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from itertools import compress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, Self

from gguf_mla.stream.engine import Done
from gguf_mla.stream.threads import POLL_SECONDS, grace_after, join

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from gguf_mla.files.output import OutputFile
    from gguf_mla.stream.books import Books
    from gguf_mla.stream.chunks import PlacedPart
    from gguf_mla.stream.engine import Target, Task, Worker
    from gguf_mla.stream.goal import Goal
    from gguf_mla.stream.saving import Saver

Receipt = Mapping[str, Any]  # what a sink says of a file that it has taken: JSON-ready data


class Sink(Protocol):
    """Where complete files go for good."""

    @property
    def keeps(self) -> bool:
        """Whether they stay on this machine, too."""

    def takes(self, path: Path, /) -> bool:
        """Whether a file of the run is for it."""

    def name(self, path: Path, /) -> str:
        """Return what it calls an output."""

    def has(self, receipts: Mapping[str, Receipt], /) -> set[str]:
        """Return which of the files that it has taken in an earlier run are still there, by their names."""

    def take(self, path: Path, built: Path, /) -> Receipt:
        """Take the complete output `path`, which lies under the name `built`; returns when it has all of it."""

    def stop(self) -> None:
        """Have `take`, which another thread has called, end soon."""

    def publish(self, receipts: Mapping[str, Receipt], /) -> None:
        """Make all files appear at the same time."""


class Staying:
    """The files of a run stay where they were built."""

    stay = True

    def group(self, _part: PlacedPart) -> tuple[int, ...]:
        """All parts of tensors may be made in any order."""
        return ()

    def watched(self, queue: Iterable[Task]) -> Iterable[Task]:
        """Tasks are not looked at."""
        return queue

    def worker(self, worker: Worker) -> Worker:
        """Nothing holds a worker."""
        return worker

    def note(self, done: Done) -> None:
        """Nothing is counted."""

    def complete(self, numbers: Iterable[int]) -> None:
        """Nothing is taken."""

    def wait(self) -> None:
        """There is nothing to wait for."""

    def publish(self) -> None:
        """They appear by their names."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing has begun."""


class Delivery:
    """The files of a run are handed to a sink, from a thread of its own while the others compute.

    stay  whether they stay on this machine, too
    """

    def __init__(self, goal: Goal, files: Sequence[OutputFile], saver: Saver, journal: Books, sink: Sink) -> None:
        self.stay, self._sink = sink.keeps, sink
        self._files, self._saver, self._journal = files, saver, journal
        self._left = [sum(job.spec.nbytes for job in file.tensors) for file in goal.planned]
        self._before = [None if place < 2 else number - 2 for number, place in enumerate(goal.places)]
        self._waiting: dict[int, tuple[Target, ...]] = {}
        self._complete: SimpleQueue[int | None] = SimpleQueue()
        self._asked = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._stopped = False
        self._receipts: dict[str, Receipt] = {}
        self.known = self._taken_before(goal)
        self._gone = set(self.known)
        self._thread = threading.Thread(target=self._guarded, daemon=True, name="gguf-mla-delivery")

    def _taken_before(self, goal: Goal) -> frozenset[int]:
        """Return which files an earlier run has delivered and need not be made again."""
        if self.stay or not self._journal.delivered:
            return frozenset()
        there = self._sink.has(self._journal.delivered)
        self._receipts = {name: receipt for name, receipt in self._journal.delivered.items() if name in there}
        return frozenset(n for n, file in enumerate(goal.planned) if self._sink.name(file.path) in there)

    def group(self, part: PlacedPart) -> tuple[int, ...]:
        """Return the numbers of the files that a part of a tensor goes to: one group is made after the other."""
        return tuple(tensor.file for tensor in part.each)

    def watched(self, queue: Iterable[Task]) -> Iterator[Task]:
        """Yield all tasks, and remember where each goes."""
        for task in queue:
            self._waiting[task.number] = task.targets
            yield task

    def worker(self, worker: Worker) -> Worker:
        """Return a worker that begins no file too early, and leaves alone those that the sink has."""
        return _Held(self, worker)

    def note(self, done: Done) -> None:
        """Count what was done, and hand over what is complete; raises what an earlier handing over has met with."""
        for target in self._waiting.pop(done.number):
            if target.file not in self.known:
                self._left[target.file] -= target.nbytes
                if not self._left[target.file]:
                    self.complete([target.file])
        self._check()

    def complete(self, numbers: Iterable[int]) -> None:
        """Have the sink take files, by their numbers."""
        for number in numbers:
            if self._sink.takes(self._files[number].final):
                self._asked += 1
                self._complete.put(number)

    def admit(self, task: Task) -> None:
        """Wait until the files of a task may be begun."""
        earlier = {before for target in task.targets if (before := self._before[target.file]) is not None}
        with self._changed:
            while not self.stay and not self._stopped and not earlier <= self._gone:
                self._changed.wait(POLL_SECONDS)

    def wait(self) -> None:
        """Wait until the sink has all files that were handed over; raises what went wrong."""
        with self._changed:
            while len(self._gone) < self._asked + len(self.known) and not self._stopped:
                self._changed.wait(POLL_SECONDS)
        self._check()

    def publish(self) -> None:
        """Have all files appear at the same time."""
        self._sink.publish(self._receipts)

    def stop(self) -> None:
        """Hold nobody any more, and give up what is being delivered."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._sink.stop()

    def __enter__(self) -> Self:
        for number in self.known:
            self._saver.let_go(self._files[number])
        self.complete(n for n, left in enumerate(self._left) if not left and n not in self.known)
        self._thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._complete.put(None)
        if error is not None:
            self.stop()
        join([self._thread], grace_after(error))

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _guarded(self) -> None:
        try:
            while (number := self._complete.get()) is not None and not self._stopped:
                self._deliver(number)
        except BaseException as error:
            with self._changed:
                if not self._stopped:  # after `stop` it is what that has led to, and the reason is raised elsewhere
                    self._error = error
                self._stopped = True
                self._changed.notify_all()

    def _deliver(self, number: int) -> None:
        file = self._files[number]
        self._saver.save()
        file.finish()
        receipt = self._sink.take(file.final, file.path)
        name = self._sink.name(file.final)
        self._journal.deliver(name, receipt)
        self._receipts[name] = receipt
        if not self.stay:
            self._saver.let_go(file)
        with self._changed:
            self._gone.add(number)
            self._changed.notify_all()


class _Held:
    """A worker that waits where a file may not be begun yet; what a sink has already is not made again."""

    def __init__(self, delivery: Delivery, worker: Worker) -> None:
        self._delivery, self._worker = delivery, worker

    def expect(self, task: Task) -> None:
        """Hear that a task will come soon, if anything of it has to be done."""
        if any(self._is_wanted(task)):
            self._worker.expect(task)

    def do(self, task: Task) -> Done:
        """Do a task for those files that the sink does not have."""
        wanted = self._is_wanted(task)
        none = (0,) * len(task.targets)
        if not any(wanted):
            return Done(task.number, task.claimed or none, task.nbytes, {}, taken_over=True)
        self._delivery.admit(task)
        try:
            done = self._worker.do(_only(task, wanted))
        except BaseException:
            self._delivery.stop()  # others may be held, and would be waited for
            raise
        sums, claimed = iter(done.sums), task.claimed or none
        return replace(
            done,
            sums=tuple(next(sums) if want else claim for want, claim in zip(wanted, claimed, strict=True)),
            nbytes=task.nbytes,
        )

    def _is_wanted(self, task: Task) -> list[bool]:
        return [target.file not in self._delivery.known for target in task.targets]


def _only(task: Task, wanted: Sequence[bool]) -> Task:
    """Return a task with some of its targets."""
    if all(wanted):
        return task
    claimed = None if task.claimed is None else tuple(compress(task.claimed, wanted))
    return replace(task, targets=tuple(compress(task.targets, wanted)), claimed=claimed)
