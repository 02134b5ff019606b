"""The executor: any plan, in bounded memory, by several workers, into files that appear only when they are complete.

Every output byte has its place before the first is read, so the workers take tasks in file order, and write each at its
offset. Memory depends on the workers and the task, never on a tensor. Several outputs that want the same tensors in
different types are written from one reading. Now and then what was written is brought to the disk and noted in a
journal; a run that finds one takes over what it says, after a look at the bytes.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.codec.on_cpu import CPU
from gguf_mla.files import checksums, platform
from gguf_mla.files.guard import check_free, is_known, partial_path
from gguf_mla.files.output import OutputFile, check_room
from gguf_mla.files.stamp import Watch
from gguf_mla.plan.jobs import NO_IMPORTANCE
from gguf_mla.stream.books import NoJournal
from gguf_mla.stream.chunks import parts, placed
from gguf_mla.stream.delivery import Delivery, Staying
from gguf_mla.stream.goal import Goal
from gguf_mla.stream.identity import identity
from gguf_mla.stream.journal import Journal, journal_room
from gguf_mla.stream.order import announced, arranged, tape_of
from gguf_mla.stream.saving import Saver
from gguf_mla.stream.settling import settled
from gguf_mla.stream.threads import engine_of
from gguf_mla.stream.worker import TensorWorker, Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from gguf_mla.codec.device import Device
    from gguf_mla.files.output import Extra
    from gguf_mla.files.readable import AnyPath
    from gguf_mla.plan.jobs import Importance
    from gguf_mla.plan.outputs import Output
    from gguf_mla.sources.tensor import SourceTensor
    from gguf_mla.stream.books import Books
    from gguf_mla.stream.delivery import Sink
    from gguf_mla.stream.engine import Engine, Task, Worker

    Progress = Callable[[int], object]


@dataclass(frozen=True)
class Result:
    """What was written.

    paths              the files
    nbytes             their size together
    taken_over         bytes of it that an earlier run had written
    streaming_seconds  until the last byte was written
    seconds            until all were on the disk
    threads            how many worked
    stages             seconds by stage of the work, all threads together
    remarks            what reading the sources has shown: data for Checkpoint.remarks
    """

    paths: tuple[Path, ...]
    nbytes: int
    taken_over: int
    streaming_seconds: float
    seconds: float
    threads: int
    stages: Mapping[str, float]
    remarks: tuple[Any, ...]


@dataclass(frozen=True)
class Resumption:
    """How a run can be continued.

    inputs  the files whose content decides what is written; a run whose inputs have changed is not continued
    fresh   throw away what an earlier run has left
    """

    inputs: Sequence[AnyPath]
    fresh: bool = False


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C while the outputs were written: `done` of `total` bytes are on the disk and will be taken over."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__()
        self.done, self.total = done, total


def execute(
    outputs: Sequence[Output],
    sources: Mapping[str, SourceTensor],
    *,
    importance: Importance = NO_IMPORTANCE,
    threads: int | None = None,
    device: Device = CPU,
    progress: Progress = lambda _: None,
    resumption: Resumption | None = None,
    books: Books | None = None,
    overwrite: bool = False,
    extras: Sequence[Extra] = (),
    outdated: Sequence[Path] = (),
    sink: Sink | None = None,
) -> Result:
    """Write all outputs in one pass; nothing is there under their names unless everything succeeded.

    The outputs hold the same tensors, made of the same parts, in the same order; types, metadata and the division into
    files may differ. `device` encodes, with no influence on the bytes. `progress` is called with the number of bytes
    done since its last call, always from the calling thread. `extras` are written when the outputs are complete, and
    named with them; `outdated` names notes about older outputs, which are removed just before. Only with `overwrite` is
    an older file of the same name replaced. With `resumption`, what a failing machine or an interrupt leaves is kept,
    and the next call goes on from there; without, nothing is left. `books`, where they are given, say what is there
    already, in the place of a journal. A `sink` takes each file as it is complete, and publishes all in the end; those
    that it does not keep here get no name.

    Raises InputError for unusable weights, an unfinished run of something else and files in the way, MachineError for a
    full or failing disk, a file that was taken away and an input that has changed meanwhile, RunInterrupted.
    """
    begin, count = time.monotonic(), threads or platform.cores()
    goal = Goal.of(outputs, extras, outdated, overwrite=overwrite, passing=sink is not None and not sink.keeps)
    with ExitStack() as stack:
        inputs = resumption.inputs if resumption else ()
        watch, tape = Watch(inputs), tape_of(inputs)
        journal = books or _journal(goal, len(outputs), resumption, importance)
        stack.push(journal)
        files = _locked(goal, journal, stack)
        saver = Saver(files, journal, goal.at_once)
        delivery = Staying() if sink is None else Delivery(goal, files, saver, journal, sink)
        forgetting = goal.nbytes > platform.physical_memory() // 4
        kind = Witness if books else TensorWorker
        worker = delivery.worker(kind(sources, importance, files, device, forgetting=forgetting))
        with settled(files, journal, lambda: RunInterrupted(journal.nbytes, goal.nbytes)):
            _prepare(files, goal, journal)
            with delivery:
                queue = claimed(arranged(parts(placed(outputs, goal.layouts)), sources, tape, delivery.group), journal)
                tasks = delivery.watched(announced(queue, tape, worker.expect))
                run(engine_of(count), tasks, worker, saver, delivery, progress)
                streamed = time.monotonic()
                saver.save()
                _complete(files, goal, delivery)
                watch.check()
                delivery.publish()
            _end(files, goal, journal, delivery)
    return _result(goal, saver, count, streamed - begin, time.monotonic() - begin)


def _journal(goal: Goal, outputs: int, resumption: Resumption | None, importance: Importance) -> Books:
    """Lock and open the journal; what an earlier run has left is kept until it is known to be of use."""
    if resumption is None:
        return NoJournal()
    stated = identity(goal.planned, goal.layouts, resumption.inputs, importance)
    paths = [path for path, _ in goal.sizes]
    names = dict.fromkeys(path.name for path in [*paths, *goal.outdated])
    return Journal(paths[0], stated, [*names], outputs, fresh=resumption.fresh)


def _locked(goal: Goal, journal: Books, stack: ExitStack) -> list[OutputFile]:
    """Take back what an earlier run has named, and lock all outputs; the journal is locked already."""
    journal.take_back()
    for path, _ in goal.sizes:
        check_free(path, overwrite=goal.may_replace(path))
    return [stack.enter_context(OutputFile(path, size, known=journal.known_of(path))) for path, size in goal.sizes]


def _prepare(files: Sequence[OutputFile], goal: Goal, journal: Books) -> None:
    """Check that there is room and write the heads."""
    if not journal.nbytes:
        for file in files:
            file.clear()
    for path in goal.outdated:
        _remove_draft(path, files, journal)
    check_room(files, journal.nbytes, journal_room(sum(file.size for file in files)), at_once=goal.at_once)
    journal.begin({file.final: file.inode() for file in files})
    for file, layout in zip(files, goal.layouts, strict=False):  # what is no GGUF file comes after them
        file.write(np.frombuffer(layout.head, np.uint8), 0)


def _remove_draft(path: Path, files: Sequence[OutputFile], journal: Books) -> None:
    """Remove the unfinished note that an earlier run has left and this run does not write."""
    draft = partial_path(path)
    with suppress(FileNotFoundError):
        if path not in [file.final for file in files] and is_known(
            draft.lstat(), journal.known_of(path).get(path.name)
        ):
            platform.remove(draft)


def claimed(queue: Iterable[Task], journal: Books) -> Iterator[Task]:
    """Tell every task what an earlier run has noted for it."""
    for task in queue:
        sums = journal.claims.of(task.number)
        yield task if sums is None else replace(task, claimed=sums)


def run(
    engine: Engine,
    queue: Iterable[Task],
    worker: Worker,
    saver: Saver,
    delivery: Delivery | Staying,
    progress: Progress,
) -> None:
    """Have all tasks done, reporting from this thread."""
    dones = engine.run(queue, worker)
    with saver:
        try:
            for done in dones:
                saver.note(done)
                delivery.note(done)
                progress(done.nbytes)
        except BaseException as error:
            dones.throw(error)  # the engine ends its workers, and raises it again


def _complete(files: Sequence[OutputFile], goal: Goal, delivery: Delivery | Staying) -> None:
    """Have all files on the disk, or where they go, those last that are made of the others."""
    delivery.wait()
    outputs = len(goal.planned)
    for file in files[:outputs] if delivery.stay else ():
        file.finish()
    for extra, file in zip(goal.extras, files[outputs:], strict=True):
        file.clear()
        extra.write(file)
        file.finish()
    delivery.complete(range(outputs, len(files)))
    delivery.wait()


def _end(files: Sequence[OutputFile], goal: Goal, journal: Books, delivery: Delivery | Staying) -> None:
    """Name the files that stay, and forget how they were made."""
    if delivery.stay:
        _commit(files, goal, journal)
    journal.remove()


def _commit(files: Sequence[OutputFile], goal: Goal, journal: Books) -> None:
    """Give all files their names, once it is certain that all of them can have them."""
    for file in files:
        file.overwrite = goal.may_replace(file.final)
        file.check()
    journal.finish({file.final: file.mark() for file in files})
    for path in goal.outdated:
        checksums.remove(path)
    for file in files:
        file.overwrite = file.overwrite and file.final not in goal.outdated  # their names are free now
        file.commit()


def _result(goal: Goal, saver: Saver, threads: int, streaming_seconds: float, seconds: float) -> Result:
    return Result(
        paths=tuple(file.path for file in goal.planned),
        nbytes=goal.nbytes,
        taken_over=saver.taken_over,
        streaming_seconds=streaming_seconds,
        seconds=seconds,
        threads=threads,
        stages=dict(saver.seconds),
        remarks=tuple(remark for number in sorted(saver.remarks) for remark in saver.remarks[number]),
    )
