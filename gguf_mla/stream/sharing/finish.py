"""The end of shared work: every record is held against the bytes, and then the files get their heads and names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError
from gguf_mla.stream.books import Claims, NoJournal
from gguf_mla.stream.execute import Result, execute
from gguf_mla.stream.journal import is_named_by, take_back
from gguf_mla.stream.sharing.ledger import me
from gguf_mla.stream.sharing.record import DIGITS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from gguf_mla.files.guard import Mark
    from gguf_mla.stream.engine import Done
    from gguf_mla.stream.run import Job
    from gguf_mla.stream.sharing.ledger import Ledger
    from gguf_mla.stream.sharing.plan import SharedPlan
    from gguf_mla.stream.sharing.record import Record


def finish(job: Job, plan: SharedPlan, ledger: Ledger, **circumstances: Any) -> Result:
    """Complete and name the files of a plan, all of whose jobs are done; `circumstances` are those of `execute`.

    Bytes that are not what a record says are written again. Raises what `execute` does; InputError where jobs are
    missing; MachineError where bytes that are written again differ from what a record says. Nothing is thrown away.
    """
    outputs = [output for _, output in job.outputs]
    paths = [file.path for output in outputs for file in output]
    if ledger.is_complete(paths):  # an earlier attempt was stopped after it had named the last
        ledger.remove()
        nbytes = sum(int(output["bytes"]) for output in plan.outputs)
        return Result(tuple(paths), nbytes, nbytes, 0.0, 0.0, 1, {}, ())
    records = {record.number: record for record in ledger.records()}
    if missing := [each.number for each in plan.jobs if each.number not in records]:
        raise InputError(
            "not all of the work is done",
            file=ledger.folder,
            expected=f"{len(plan.jobs)} jobs",
            found=f"{len(records)} jobs",
            remedy=f"Run gguf-mla work with --jobs {ranges(missing)}",
        )
    books = _Books(plan, ledger, records, [*paths, *(extra.path for extra in circumstances.get("extras", ()))])
    result = execute(outputs, job.sources, books=books, **circumstances)
    remarks = (remark for number in sorted(records) for remark in records[number].remarks)
    return replace(result, remarks=tuple(remarks))


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as the ranges that they make: 3,7-9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


class _Books(NoJournal):
    """The books of who finishes: everything was done, by others, and nothing may come out otherwise."""

    def __init__(self, plan: SharedPlan, ledger: Ledger, records: Mapping[int, Record], paths: Sequence[Path]) -> None:
        self._ledger, self._records, self._paths, self._jobs = ledger, records, paths, plan.jobs
        outputs = len(plan.jobs[0].ranges) if plan.jobs else 1
        self.claims = Claims(self._lines(outputs), outputs)
        self.nbytes = plan.nbytes

    def _lines(self, outputs: int) -> Iterator[str]:
        for job in self._jobs:
            for number, sums in self._records[job.number].tasks(job.first, outputs):
                yield f"{number} 0 {' '.join(f'{value:08x}' for value in sums)}"

    def known_of(self, path: Path) -> Mapping[str, int]:
        """Return the inode that workers have noted."""
        return {path.name: self._ledger.inodes().get(str(path), 0)}

    def take_back(self) -> None:
        """Give files their unfinished names again where an earlier attempt was stopped in the middle of naming."""
        marks = self._ledger.marks()
        for path in self._paths:
            if str(path) in marks and is_named_by({path.name: marks[str(path)]}, path):
                take_back(path)

    def record(self, written: Sequence[Done]) -> None:
        """Raise MachineError: only what came out otherwise than a record says is to be noted."""
        for done in written:
            job = next(job for job in self._jobs if job.first <= done.number < job.stop)
            record = self._records[job.number]
            name = _tensor(record, done.number - job.first, len(job.ranges))
            self._ledger.disagree(job.number, name, record.worker, me())

    def finish(self, marks: Mapping[Path, Mark]) -> None:
        """Note that the files are about to be named."""
        self._ledger.note_marks({str(path): mark for path, mark in marks.items()})

    def keeps(self, _: BaseException) -> bool:
        """Keep everything: it is the work of many."""
        return True

    def remove(self) -> None:
        """Forget everything."""
        self._ledger.remove()


def _tensor(record: Record, at: int, outputs: int) -> str:
    """Return the tensor that a task of a record belongs to; `at` counts the job's tasks."""
    digit = at * DIGITS * outputs
    for name, sums in record.sums.items():
        digit -= len(sums)
        if digit < 0:
            return name
    return ""
