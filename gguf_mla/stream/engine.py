"""The seam between the driver of a run and what does its work: tasks go out, and what was done comes back.

Both are plain data that another process understands: names and numbers, never an open file. The driver alone knows the
journal, brings bytes to the disk and reports; an engine only sees to it that a worker does every task.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

    from gguf_mla.plan.jobs import Part

Sums = tuple[int, ...]  # a CRC-32 for each target of a task

AHEAD = 16  # tasks whose rows the OS is asked to fetch before a worker takes them


@dataclass(frozen=True)
class Target:
    """Where encoded rows go: `nbytes` at `offset` of file number `file` of the run.

    `type` is the ggml type, `via` a type that decoded values are rounded to before, as in TensorJob.
    """

    file: int
    type: str
    via: str | None
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Task:
    """Some rows of one source, read and decoded once, encoded for every file that wants them.

    number       counts the tasks of a run
    name, shape  the output tensor's
    part, index  the part of it that the rows belong to, and that part's number
    start, stop  the rows of the source
    targets      one for each output
    claimed      the checksums that an earlier run has noted for the targets, None where it noted none
    """

    number: int
    name: str
    shape: tuple[int, ...]
    part: Part
    index: int
    start: int
    stop: int
    targets: tuple[Target, ...]
    claimed: Sums | None = None

    @property
    def nbytes(self) -> int:
        """How many bytes are written, to all files together."""
        return sum(target.nbytes for target in self.targets)


@dataclass(frozen=True)
class Done:
    """A task whose bytes are in all its targets, though not yet on the disk.

    sums        a checksum of each target, 0 where bytes were copied without being looked at
    seconds     by stage of the work
    remarks     what reading has shown: plain data that the source's format turns into sentences
    taken_over  whether the bytes were there already, from an earlier run
    """

    number: int
    sums: Sums
    nbytes: int
    seconds: Mapping[str, float]
    remarks: tuple[Any, ...] = ()
    taken_over: bool = False


class Worker(Protocol):
    """What does tasks, in whatever thread or process an engine has put it."""

    def expect(self, task: Task) -> None:
        """Hear that a task will come soon."""

    def do(self, task: Task) -> Done:
        """Do a task; a task that is done twice leaves the same bytes."""


class Engine(Protocol):
    """How workers are run."""

    def run(self, tasks: Iterable[Task], worker: Worker) -> Generator[Done]:
        """Have every task done, in any order, and yield what was done; the first error of a worker is raised.

        An error that the driver throws in ends all work; an interrupt does not wait for what is stuck.
        """


class InLine:
    """The engine that does one task after the other in the calling thread, which is easy to follow in a debugger."""

    def run(self, tasks: Iterable[Task], worker: Worker) -> Generator[Done]:
        """Do every task in its order."""
        for task in read_ahead(tasks, worker.expect):
            yield worker.do(task)


def read_ahead(tasks: Iterable[Task], expect: Callable[[Task], None]) -> Iterator[Task]:
    """Yield tasks in their order, each announced AHEAD tasks before."""
    queue, waiting = iter(tasks), deque[Task]()
    while True:
        for task in itertools.islice(queue, AHEAD + 1 - len(waiting)):
            expect(task)
            waiting.append(task)
        if not waiting:
            return
        yield waiting.popleft()
