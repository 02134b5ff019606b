"""What a worker does: some jobs of a plan, into files that others write at the same time.

Whatever happens to it, nothing is lost: the bytes of a job are the same whoever writes them, so a job may be done
twice, at once or later, and one that was not noted as done is done again.
"""

from __future__ import annotations

import bisect
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_mla.codec.on_cpu import CPU
from gguf_mla.errors import InputError
from gguf_mla.files import platform
from gguf_mla.files.output import DiskFullError, SharedFile, check_room, no_room
from gguf_mla.files.stamp import Watch
from gguf_mla.plan.jobs import NO_IMPORTANCE
from gguf_mla.stream.books import Claims, NoJournal
from gguf_mla.stream.chunks import parts, placed
from gguf_mla.stream.delivery import Staying
from gguf_mla.stream.execute import RunInterrupted, claimed, run
from gguf_mla.stream.goal import Goal
from gguf_mla.stream.order import announced, arranged, tape_of
from gguf_mla.stream.saving import Saver
from gguf_mla.stream.sharing.cut import parts_of, within
from gguf_mla.stream.sharing.ledger import me
from gguf_mla.stream.sharing.record import Record, sums_text
from gguf_mla.stream.threads import engine_of
from gguf_mla.stream.worker import Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gguf_mla.codec.device import Device
    from gguf_mla.stream.engine import Done, Sums, Task
    from gguf_mla.stream.run import Job
    from gguf_mla.stream.sharing.cut import SharedJob
    from gguf_mla.stream.sharing.ledger import Ledger


@dataclass(frozen=True)
class Worked:
    """What a worker has done.

    jobs        the numbers of its jobs
    nbytes      what they write
    taken_over  bytes of it that were there already
    seconds     until all was noted
    threads     how many worked
    stages      seconds by stage of the work, all threads together
    """

    jobs: tuple[int, ...]
    nbytes: int
    taken_over: int
    seconds: float
    threads: int
    stages: Mapping[str, float]


def work(
    job: Job,
    mine: Sequence[SharedJob],
    ledger: Ledger,
    *,
    threads: int | None = None,
    device: Device = CPU,
    progress: Callable[[int], object] = lambda _: None,
) -> Worked:
    """Do some jobs of a plan, in the order of their numbers, unless their bytes are there already.

    Raises InputError for unusable weights, which stops all other workers, too; MachineError for a full or failing disk,
    an input that has changed, or another worker that made other bytes; RunInterrupted. Whatever is raised, what was
    noted counts.
    """
    begin, count = time.monotonic(), threads or platform.cores()
    outputs, importance = [output for _, output in job.outputs], job.importance or NO_IMPORTANCE
    goal, total = Goal.of(outputs), sum(each.nbytes for each in mine)
    tape, watch = tape_of(job.inputs), Watch(job.inputs)
    with ExitStack() as stack:
        ledger.check()
        files = _opened(goal, ledger, stack)
        books = _Books(mine, len(outputs), ledger)
        saver = Saver(files, books)
        forgetting = goal.nbytes > platform.physical_memory() // 4
        worker = Witness(job.sources, importance, files, device, forgetting=forgetting)
        with _settled(files, ledger, lambda: RunInterrupted(books.nbytes, total)):
            check_room(files, 0)
            selected = parts_of(parts(placed(outputs, goal.layouts)), mine)
            queue = books.heard(claimed(within(arranged(selected, job.sources, tape), mine), books))
            run(engine_of(count), announced(queue, tape, worker.expect), worker, saver, Staying(), progress)
            watch.check()
            saver.save()
    stages, numbers = dict(saver.seconds), tuple(each.number for each in mine)
    return Worked(numbers, total, saver.taken_over, time.monotonic() - begin, count, stages)


class _Books(NoJournal):
    """The books of a worker: of each of its jobs what a record claims, and what has been done."""

    def __init__(self, mine: Sequence[SharedJob], outputs: int, ledger: Ledger) -> None:
        self._ledger = ledger
        self._mine = {job.number: job for job in mine}
        self._records = {job.number: found for job in mine if (found := ledger.record(job.number)) is not None}
        lines = (
            f"{number} 0 {' '.join(f'{value:08x}' for value in sums)}"
            for job in mine
            if job.number in self._records
            for number, sums in self._records[job.number].tasks(job.first, outputs)
        )
        self.claims = Claims(lines, outputs)
        self.nbytes = sum(self._mine[number].nbytes for number in self._records)
        self._owner: dict[int, tuple[int, str]] = {}  # of tasks on their way: the job, and the tensor
        self._done: dict[int, dict[int, tuple[str, Sums, tuple[Any, ...]]]] = defaultdict(dict)
        self._begun: dict[int, float] = {}

    def heard(self, queue: Iterator[Task]) -> Iterator[Task]:
        """Note which job every task belongs to; tasks of a job that is noted as done may be there already."""
        jobs = sorted(self._mine.values(), key=lambda job: job.first)
        firsts = [job.first for job in jobs]
        for task in queue:
            job = jobs[bisect.bisect_right(firsts, task.number) - 1]
            self._owner[task.number] = job.number, task.name
            self._begun.setdefault(job.number, time.monotonic())
            yield task

    def record(self, written: Sequence[Done]) -> None:
        """Note the jobs all of whose tasks are on the disk by now."""
        touched = dict.fromkeys(self._take(done) for done in written)
        for number in touched:
            job = self._mine[number]
            if number in self._records:  # only what has other sums than the record claims comes here
                name = next(iter(self._done[number].values()))[0]
                self._ledger.disagree(number, name, self._records[number].worker, me())
            if len(self._done[number]) == job.stop - job.first:
                self._publish(number)
        self._ledger.check_stopped()

    def _take(self, done: Done) -> int:
        number, name = self._owner.pop(done.number)
        self._done[number][done.number] = name, done.sums, done.remarks
        return number

    def _publish(self, number: int) -> None:
        self._ledger.note(self._made(number))
        self.nbytes += self._mine[number].nbytes
        del self._done[number]

    def _made(self, number: int) -> Record:
        sums: dict[str, str] = defaultdict(str)
        done = self._done[number]
        for task in sorted(done):
            name, values, _ = done[task]
            sums[name] += sums_text(values)
        remarks = tuple(remark for task in sorted(done) for remark in done[task][2])
        seconds = time.monotonic() - self._begun[number]
        return Record(number, self._ledger.digest, me(), seconds, sums, remarks)


def _opened(goal: Goal, ledger: Ledger, stack: ExitStack) -> list[SharedFile]:
    """Open the files that all workers write, and see to it that they are the same ones; the same errors as theirs."""
    known = ledger.inodes()
    try:
        files = _open(goal, known, stack)
    except InputError:
        if ledger.inodes() == known:
            raise
        files = _open(goal, ledger.inodes(), stack)  # another worker has begun meanwhile
    ledger.note_inodes({str(file.final): file.inode() for file in files})
    return files


def _open(goal: Goal, known: Mapping[str, int], stack: ExitStack) -> list[SharedFile]:
    with ExitStack() as opening:
        files = [
            opening.enter_context(SharedFile(path, size, known={path.name: known.get(str(path), 0)}))
            for path, size in goal.sizes[: len(goal.planned)]
        ]
        stack.push(opening.pop_all())
    return files


@contextmanager
def _settled(files: Sequence[SharedFile], ledger: Ledger, stopped: Callable[[], KeyboardInterrupt]) -> Iterator[None]:
    """Tell all workers of weights that nobody can use; `stopped` is raised in the place of an interrupt."""
    try:
        yield
    except InputError as error:
        ledger.stop(error)
        raise
    except KeyboardInterrupt:
        raise stopped() from None
    except DiskFullError:
        raise no_room(files[0].path.parent, sum(file.missing for file in files)) from None
