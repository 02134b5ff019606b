"""A plan's tasks are cut into jobs: by the plan alone, so that whoever has the plan has the same jobs.

A job is consecutive tasks. In every output it writes one range of one file, so that where outputs are split it never
goes from one part to the next. A tensor that several outputs want is read once, and belongs to one job for all of them.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_mla.stream import chunks
from gguf_mla.stream.sharing import cost

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gguf_mla.sources.tensor import SourceTensor
    from gguf_mla.stream.chunks import PlacedPart, PlacedTensor
    from gguf_mla.stream.engine import Target, Task

LARGEST, LEAST = 1 << 30, 32 << 20  # bytes of a job
WANTED = 4096  # jobs, so that hundreds of workers have some each


@dataclass(frozen=True)
class SharedJob:
    """A part of the work that one worker does at a time.

    number       counts the jobs of a plan
    first, stop  its tasks
    ranges       what it writes: number of the file, offset, and bytes up to the end of its last task
    nbytes       how many bytes its tasks write
    reads        about how many it reads
    seconds      about how long one thread takes
    """

    number: int
    first: int
    stop: int
    ranges: tuple[tuple[int, int, int], ...]
    nbytes: int
    reads: int
    seconds: float

    def to_data(self) -> dict[str, Any]:
        """Return the job as JSON-ready data."""
        return {
            "id": self.number,
            "tasks": [self.first, self.stop],
            "output": [list(place) for place in self.ranges],
            "bytes": self.nbytes,
            "reads": self.reads,
            "seconds": self.seconds,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> SharedJob:
        """Return the job again; KeyError, TypeError or ValueError for other data."""
        first, stop = map(int, data["tasks"])
        ranges = tuple((int(file), int(offset), int(size)) for file, offset, size in data["output"])
        sizes = int(data["bytes"]), int(data["reads"]), float(data["seconds"])
        return cls(int(data["id"]), first, stop, ranges, *sizes)


@dataclass(frozen=True)
class _Piece:
    """Tasks that stay together: a part of a tensor, or one task of a large part."""

    first: int
    stop: int
    targets: tuple[Target, ...]
    reads: float
    seconds: float

    @property
    def nbytes(self) -> int:
        return sum(target.nbytes for target in self.targets)

    @property
    def files(self) -> tuple[int, ...]:
        return tuple(target.file for target in self.targets)


def job_bytes(total: int) -> int:
    """Return how large the jobs of a plan should be that writes so many bytes."""
    return min(LARGEST, max(LEAST, total // WANTED))


def cut(
    tensors: Iterable[Sequence[PlacedTensor]], sources: Mapping[str, SourceTensor], limit: int, *, weighted: bool
) -> list[SharedJob]:
    """Return the jobs of a plan, each of at most `limit` bytes unless a single task is larger; they hold every task.

    `weighted`: there may be importance, which makes some types slower.
    """
    jobs: list[SharedJob] = []
    held: list[_Piece] = []
    size = 0
    for piece in _pieces(tensors, sources, limit, weighted=weighted):
        if held and (size + piece.nbytes > limit or piece.files != held[0].files):
            jobs.append(_job(len(jobs), held))
            held, size = [], 0
        held.append(piece)
        size += piece.nbytes
    return [*jobs, _job(len(jobs), held)] if held else jobs


def parts_of(parts: Iterable[PlacedPart], jobs: Sequence[SharedJob]) -> Iterator[PlacedPart]:
    """Yield the parts that some of a plan's jobs, in their order, have tasks of."""
    at = 0
    for part in parts:
        while at < len(jobs) and jobs[at].stop <= part.first:
            at += 1
        if at == len(jobs):
            return
        if jobs[at].first < part.end()[1]:
            yield part


def within(tasks: Iterable[Task], jobs: Sequence[SharedJob]) -> Iterator[Task]:
    """Yield those tasks that belong to one of some jobs, which are in their order."""
    firsts = [job.first for job in jobs]
    for task in tasks:
        at = bisect.bisect_right(firsts, task.number) - 1
        if at >= 0 and task.number < jobs[at].stop:
            yield task


def _pieces(
    tensors: Iterable[Sequence[PlacedTensor]], sources: Mapping[str, SourceTensor], limit: int, *, weighted: bool
) -> Iterator[_Piece]:
    for part in chunks.parts(tensors):
        source = sources[part.part.source]
        written = part.whole()
        reads = cost.bytes_read(part.part, source, written)
        seconds = cost.seconds(part.part, source, written, weighted=weighted)
        whole = _Piece(part.first, part.end()[1], written, reads, seconds)
        if whole.nbytes <= limit:
            yield whole
            continue
        for task in part.tasks():
            share = task.nbytes / whole.nbytes
            yield _Piece(task.number, task.number + 1, task.targets, reads * share, seconds * share)


def _job(number: int, pieces: Sequence[_Piece]) -> SharedJob:
    first, last = pieces[0], pieces[-1]
    ranges = tuple(
        (begin.file, begin.offset, end.offset + end.nbytes - begin.offset)
        for begin, end in zip(first.targets, last.targets, strict=True)
    )
    nbytes, reads = sum(piece.nbytes for piece in pieces), sum(piece.reads for piece in pieces)
    return SharedJob(
        number, first.first, last.stop, ranges, nbytes, int(reads), round(sum(p.seconds for p in pieces), 3)
    )
