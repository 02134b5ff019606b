"""The executor: any plan, in bounded memory, by several threads, into files that appear only when they are complete.

Every output byte has its place before the first is read, so the threads take chunks from one queue, in file order, and
write each at its offset. Memory depends on the threads and the chunk, never on a tensor. Several outputs that want the
same tensors in different types are written from one reading. Now and then what was written is brought to the disk and
noted in a journal; a run that finds one takes over what it says, after a look at the bytes.
"""

from __future__ import annotations

import functools
import itertools
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.codec.on_cpu import CPU
from gguf_mla.container.writer import lay_out
from gguf_mla.errors import InputError
from gguf_mla.files import platform
from gguf_mla.files.output import DiskFullError, OutputFile, check_room, no_room, partial_path
from gguf_mla.stream.chunks import Place, chunks
from gguf_mla.stream.journal import Journal, NoJournal, check_same, identity, journal_path, journal_room, was_finished
from gguf_mla.stream.threads import Progress, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from gguf_mla.codec.device import Device
    from gguf_mla.container.writer import FileLayout
    from gguf_mla.plan.jobs import Importance
    from gguf_mla.plan.outputs import Output
    from gguf_mla.sources.tensor import SourceTensor


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
    """

    paths: tuple[Path, ...]
    nbytes: int
    taken_over: int
    streaming_seconds: float
    seconds: float
    threads: int
    stages: Mapping[str, float]


@dataclass(frozen=True)
class Resumption:
    """How a run can be continued.

    inputs  the files whose content decides what is written; a run whose inputs have changed is not continued
    fresh   throw away what an earlier run has left
    """

    inputs: Sequence[Path]
    fresh: bool = False


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while the outputs were written: `done` of `total` bytes are on the disk and will be taken over."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__()
        self.done, self.total = done, total


def no_importance(_name: str, _shape: tuple[int, ...]) -> None:
    """Know no importance for any tensor."""


def execute(
    outputs: Sequence[Output],
    sources: Mapping[str, SourceTensor],
    *,
    importance: Importance = no_importance,
    threads: int | None = None,
    device: Device = CPU,
    progress: Progress = lambda _: None,
    resumption: Resumption | None = None,
    finish: Callable[[OutputFile], object] = lambda _: None,
) -> Result:
    """Write all outputs in one pass; nothing is there under their names unless everything succeeded.

    The outputs hold the same tensors, made of the same parts, in the same order; types, metadata and the division into
    files may differ. `device` encodes, with no influence on the bytes. `progress` is called with the number of bytes
    done since its last call, always from the calling thread, `finish` with every complete file before it gets its name.
    With `resumption`, what a failing machine or an interrupt leaves is kept, and the next call goes on from there;
    without, nothing is left.

    Raises InputError for unusable weights or an unfinished run of something else, MachineError for a full or failing
    disk, Interrupted.
    """
    begin = time.monotonic()
    planned = [file for output in outputs for file in output]
    layouts = [lay_out(file.metadata, [job.spec for job in file.tensors]) for file in planned]
    nbytes, count = sum(layout.size for layout in layouts), threads or default_threads()
    with ExitStack() as stack:
        files, journal = _open(planned, layouts, len(outputs), resumption, stack)
        try:
            _prepare(files, layouts, journal)
            queue = chunks(zip(*_places(outputs, files, layouts), strict=True))
            weights = functools.lru_cache(maxsize=8)(importance)
            workers = Workers(queue, sources, weights, files, journal, device)
            workers.work(count, progress)
            streamed = time.monotonic()
            workers.save()
            _commit(files, journal, finish)
        except BaseException as error:
            _settle(error, files, journal)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(journal.nbytes, nbytes) from None
            if isinstance(error, DiskFullError):
                raise no_room(files[0].path.parent, sum(file.missing for file in files)) from None
            raise
    paths = tuple(file.path for file in planned)
    ended = time.monotonic()
    return Result(paths, nbytes, workers.taken_over, streamed - begin, ended - begin, count, dict(workers.seconds))


def default_threads() -> int:
    """Return the number of cores this process may use."""
    return platform.cores()


def _open(
    planned: Output, layouts: Sequence[FileLayout], places: int, resumption: Resumption | None, stack: ExitStack
) -> tuple[list[OutputFile], Journal | NoJournal]:
    """Lock all outputs, then open the journal; what an earlier run has left is kept until it is known to be of use."""
    if resumption is None:
        return _locked(planned, layouts, stack), NoJournal()
    first, stated = planned[0].path, identity(planned, layouts, resumption.inputs)
    if not resumption.fresh and was_finished(first, places):
        check_same(first, stated, places)
        _take_back(planned)
    files = _locked(planned, layouts, stack)
    if resumption.fresh:
        journal_path(first).unlink(missing_ok=True)
    return files, stack.enter_context(Journal(first, stated, places))


def _locked(planned: Output, layouts: Sequence[FileLayout], stack: ExitStack) -> list[OutputFile]:
    pairs = zip(planned, layouts, strict=True)
    return [stack.enter_context(OutputFile(file.path, layout.size)) for file, layout in pairs]


def _take_back(planned: Output) -> None:
    """Give files their unfinished names again where a run was stopped between naming the first and the last."""
    for file in planned:
        partial = partial_path(file.path)
        if file.path.exists() and not partial.exists():
            file.path.replace(partial)


def _prepare(files: Sequence[OutputFile], layouts: Sequence[FileLayout], journal: Journal | NoJournal) -> None:
    """Check that there is room and write the heads."""
    if not journal.nbytes:
        for file in files:
            file.clear()
    check_room(files, journal.nbytes, journal_room(sum(file.size for file in files)))
    for file, layout in zip(files, layouts, strict=True):
        file.write(np.frombuffer(layout.head, np.uint8), 0)


def _places(
    outputs: Sequence[Output], files: Sequence[OutputFile], layouts: Sequence[FileLayout]
) -> Iterator[list[Place]]:
    """Yield the place of every tensor, output by output."""
    laid_out = iter(zip(files, layouts, strict=True))
    for output in outputs:
        yield [
            Place(file, job, offset)
            for planned, (file, layout) in zip(output, itertools.islice(laid_out, len(output)), strict=True)
            for job, offset in zip(planned.tensors, layout.offsets, strict=True)
        ]


def _commit(files: Sequence[OutputFile], journal: Journal | NoJournal, finish: Callable[[OutputFile], object]) -> None:
    for file in files:
        file.finish()
        finish(file)
    journal.finish()
    for file in files:
        file.commit()
    journal.remove()


def _settle(error: BaseException, files: Sequence[OutputFile], journal: Journal | NoJournal) -> None:
    """Keep what can be gone on with; an input at fault has to change first, and then nothing can."""
    keep = journal.nbytes > 0 and not isinstance(error, InputError)
    for file in files:
        file.kept = keep
    if not keep:
        journal.remove()
