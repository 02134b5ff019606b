"""Whole files as jobs, where workers share no folder: each is built on a worker's disk, and sent where all can see it.

Beside the files lie notes: the plan, a record of each file that is there, and why nobody should go on. None is
believed: who relies on a record asks the destination whether it has these bytes.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_mla.codec.on_cpu import CPU
from gguf_mla.errors import GgufMlaError, InputError
from gguf_mla.files import platform
from gguf_mla.files.locked import BusyError
from gguf_mla.files.output import OutputFile
from gguf_mla.plan.jobs import NO_IMPORTANCE
from gguf_mla.sources import remarks
from gguf_mla.stream.execute import Result, Resumption, execute
from gguf_mla.stream.goal import Goal
from gguf_mla.stream.sharing import plan as plans
from gguf_mla.stream.sharing.finish import ranges
from gguf_mla.stream.sharing.ledger import PLAN, STOP, content, differing, me, reason, signed, stopped
from gguf_mla.stream.sharing.work import Worked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gguf_mla.codec.device import Device
    from gguf_mla.errors import MachineError
    from gguf_mla.files.output import Extra
    from gguf_mla.remote.destination import Destination
    from gguf_mla.stream.delivery import Receipt
    from gguf_mla.stream.run import Job
    from gguf_mla.stream.sharing.plan import SharedPlan


@dataclass(frozen=True)
class Whole:
    """A whole file as a job.

    number   counts the files of a plan
    path     its name, which it never gets on a worker's disk
    nbytes   its size
    reads    about how many bytes are read for it
    seconds  about how long one thread takes for it
    """

    number: int
    path: Path
    nbytes: int
    reads: int
    seconds: float


def wholes(plan: SharedPlan) -> list[Whole]:
    """Return the files of a plan as jobs: each takes its part of the time of the plan's own, and reads what they do."""
    seconds, reads = [0.0] * len(plan.outputs), [0] * len(plan.outputs)
    for job in plan.jobs:
        total = sum(size for _, _, size in job.ranges)
        for file, _, size in job.ranges:
            seconds[file] += job.seconds * size / total
            reads[file] += job.reads
    return [
        Whole(number, Path(output["path"]), int(output["bytes"]), reads[number], seconds[number])
        for number, output in enumerate(plan.outputs)
    ]


@dataclass(frozen=True)
class Sent:
    """The record of a file that was sent: its number, what its destination has said, by whom, and what was remarked."""

    number: int
    receipt: Receipt
    worker: str
    remarks: tuple[Any, ...] = ()


class PartLedger:
    """The notes about one plan beside the files themselves.

    A record has a name of its own, whoever writes it: nobody overwrites another's, and where two have made different
    bytes both are found. Raises InputError for the notes of another plan, MachineError when the destination fails.
    """

    def __init__(self, destination: Destination, plan: SharedPlan) -> None:
        self._destination, self._shelf, self._plan = destination, destination.shelf(), plan

    @property
    def called(self) -> str:
        """What the name of every file begins with that a machine builds for the plan."""
        return f"gguf-mla-{self._plan.digest[:16]}"

    def open(self) -> None:
        """Have the plan there, and nobody stopped."""
        if self._shelf.read(PLAN) is None:
            self._shelf.write(PLAN, self._plan.to_text().encode())
        self.is_there()

    def is_there(self) -> bool:
        """Whether anything was noted for this plan; raises what a worker has stopped all others with."""
        found = self._shelf.read(PLAN)
        if found is None:
            return False
        try:
            digest = plans.parse(found).digest
        except ValueError as error:
            digest = f"none ({error})"
        if digest != self._plan.digest:
            raise InputError(
                "work by another plan is unfinished there",
                file=self._called(PLAN),
                expected=f"digest {self._plan.digest[:16]}",
                found=f"digest {digest[:16]}",
                remedy="Finish it by its own plan, choose another place, or remove those notes",
            )
        if (said := self._shelf.read(STOP)) is not None:
            raise stopped(_read(said), self._called(STOP))
        return True

    def records(self) -> dict[int, list[Sent]]:
        """Return all sound records; MachineError, for all workers, where two have made different bytes of a file."""
        found: dict[int, list[Sent]] = defaultdict(list)
        for name in sorted(self._shelf.names()):
            if name not in (PLAN, STOP) and (record := self._parsed(self._shelf.read(name))) is not None:
                found[record.number].append(record)
        for number, several in found.items():
            self.compare(number, several)
        return found

    def compare(self, number: int, several: Sequence[Sent]) -> None:
        """Raise MachineError, now and for all other workers, unless records of a file are about the same bytes."""
        one, *others = several
        for other in others:
            if other.receipt["sha256"] != one.receipt["sha256"]:
                error = differing(number, one.worker, other.worker, self._called(f"{number:05}-*.json"))
                self.stop(error)
                raise error

    def sound(self) -> dict[int, Sent]:
        """Return a record of every file that its destination has."""
        found: dict[int, Sent] = {}
        for number, several in self.records().items():
            name = self._destination.name(Path(self._plan.outputs[number]["path"]))
            there = (record for record in several if self._destination.has({name: record.receipt}))
            if (record := next(there, None)) is not None:
                found[number] = record
        return found

    def is_noted(self, number: int) -> bool:
        """Whether there is a note of a file, sound or not."""
        return any(name.startswith(f"{number:05}-") for name in self._shelf.names())

    def note(self, record: Sent) -> None:
        """Note that a file is there."""
        data = {
            "file": record.number,
            "plan": self._plan.digest,
            "receipt": dict(record.receipt),
            "worker": record.worker,
            "remarks": [remarks.to_data(remark) for remark in record.remarks],
        }
        self._shelf.write(f"{record.number:05}-{uuid.uuid4().hex[:8]}.json", signed(data).encode())

    def stop(self, error: InputError | MachineError) -> None:
        """Tell all workers why they should not go on; what cannot be noted is said by whoever has met it."""
        with suppress(GgufMlaError):
            self._shelf.write(STOP, reason(error).encode())

    def remove(self) -> None:
        """Forget everything."""
        self._shelf.remove()

    def _parsed(self, text: bytes | None) -> Sent | None:
        """Return a record; None for one that is torn, forged or another plan's."""
        data = _read(text or b"")
        try:
            shown = tuple(map(remarks.from_data, data["remarks"]))
            record = Sent(data["file"], data["receipt"], str(data["worker"]), shown)
            nbytes = self._plan.outputs[record.number]["bytes"]
            return record if data["plan"] == self._plan.digest and record.receipt["size"] == nbytes else None
        except (IndexError, KeyError, TypeError, ValueError):
            return None

    def _called(self, name: str) -> str:
        return f"{self._destination.called}/{self._destination.first}.work/{name}"


def _read(text: bytes) -> Mapping[str, Any]:
    try:
        return content(text)
    except (InputError, ValueError):
        return {}


def work_on_parts(
    job: Job,
    mine: Sequence[Whole],
    destination: Destination,
    ledger: PartLedger,
    scratch: Path,
    *,
    threads: int | None = None,
    device: Device = CPU,
    progress: Callable[[int], object] = lambda _: None,
) -> Worked:
    """Build some files of a plan in a folder of this machine, one after the other, and send each, unless it is there.

    Raises what `execute` does; a bad weight stops all other workers, too. What was noted counts.
    """
    begin, taken_over, stages = time.monotonic(), 0, defaultdict[str, float](float)
    ledger.open()
    there = ledger.sound()
    for whole in mine:
        ledger.is_there()
        if whole.number in there:
            progress(whole.nbytes)
            taken_over += whole.nbytes
            continue
        sink = _Alone(destination, whole.path)
        with _told_to_all(ledger):
            how: dict[str, Any] = {"threads": threads, "device": device, "progress": progress}
            result = _built(job, whole, sink, scratch, ledger.called, **how)
        taken_over += result.taken_over
        for stage, seconds in result.stages.items():
            stages[stage] += seconds
        [receipt] = sink.receipts.values()
        ledger.note(Sent(whole.number, receipt, me(), result.remarks))
    numbers, total = tuple(whole.number for whole in mine), sum(whole.nbytes for whole in mine)
    return Worked(numbers, total, taken_over, time.monotonic() - begin, threads or platform.cores(), dict(stages))


def _built(job: Job, whole: Whole, sink: _Alone, scratch: Path, name: str, **how: Any) -> Result:
    """Build a file, as a run of its own that goes on where an earlier one was stopped here, and send it."""
    planned = Goal.of([output for _, output in job.outputs]).planned[whole.number]
    alone = replace(planned, path=scratch / f"{name}-{whole.number:05}.gguf")
    importance = job.importance or NO_IMPORTANCE
    return execute([[alone]], job.sources, importance=importance, resumption=Resumption(job.inputs), sink=sink, **how)


@contextmanager
def _told_to_all(ledger: PartLedger) -> Iterator[None]:
    """Tell all workers of weights that nobody can use."""
    try:
        yield
    except BusyError:  # the same file, on the same disk: the other one does it
        raise
    except InputError as error:
        ledger.stop(error)
        raise


class _Alone:
    """The sink of a run that makes one file of a plan; everybody sees it with all others, when they are finished."""

    keeps = False

    def __init__(self, destination: Destination, final: Path) -> None:
        self._destination, self._final = destination, final
        self.receipts: Mapping[str, Receipt] = {}

    def takes(self, _path: Path, /) -> bool:
        """There is no other file."""
        return True

    def name(self, _path: Path, /) -> str:
        """Return what the file is called there."""
        return self._destination.name(self._final)

    def has(self, receipts: Mapping[str, Receipt], /) -> set[str]:
        """Return whether an earlier run has sent it, and it is still there."""
        return self._destination.has(receipts)

    def take(self, _path: Path, built: Path, /) -> Receipt:
        """Send it."""
        return self._destination.take(self._final, built)

    def stop(self) -> None:
        """Have `take` end soon."""
        self._destination.stop()

    def publish(self, receipts: Mapping[str, Receipt], /) -> None:
        """Remember what was said of it."""
        self.receipts = receipts


def finish_parts(
    plan: SharedPlan, destination: Destination, ledger: PartLedger, extras: Sequence[Extra], scratch: Path
) -> Result:
    """Have everybody see the files of a plan, all of which are there, with what goes beside them.

    InputError where some are missing; MachineError where two workers have made different bytes, or the destination
    fails.
    """
    begin = time.monotonic()
    found = ledger.sound()
    if missing := [number for number in range(len(plan.outputs)) if number not in found]:
        raise InputError(
            "not all of the files are there",
            file=destination.called,
            expected=f"{len(plan.outputs)} files",
            found=f"{len(found)} files",
            remedy=f"Run gguf-mla work with --jobs {ranges(missing)}",
        )
    paths = [Path(output["path"]) for output in plan.outputs]
    receipts = {destination.name(path): found[number].receipt for number, path in enumerate(paths)}
    for extra in extras:
        if destination.takes(extra.path):
            receipts[destination.name(extra.path)] = _sent_beside(
                extra, destination, scratch / f"{ledger.called}-{extra.path.name}"
            )
    destination.publish(receipts)
    ledger.remove()
    seconds, nbytes = time.monotonic() - begin, sum(int(output["bytes"]) for output in plan.outputs)
    said = tuple(remark for number in sorted(found) for remark in found[number].remarks)
    return Result(tuple(paths), nbytes, nbytes, seconds, seconds, 1, {}, said)


def _sent_beside(extra: Extra, destination: Destination, place: Path) -> Receipt:
    """Write what goes beside the outputs, and send it."""
    with OutputFile(place, extra.size) as file:
        file.kept = False
        file.clear()
        extra.write(file)
        file.finish()
        return destination.take(extra.path, file.path)
