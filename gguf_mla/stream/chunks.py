"""Plans are cut into tasks: by the plan alone, so that every run of it has the same tasks with the same numbers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_mla.container.writer import PIECE_BYTES
from gguf_mla.stream.engine import Target, Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gguf_mla.container.writer import FileLayout
    from gguf_mla.plan.jobs import Part, TensorJob
    from gguf_mla.plan.outputs import Output

CHUNK_VALUES = 1 << 20  # 4 MiB as float32: small enough for a core's share of the cache, large enough to hide Python


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor of an output, and where its data begin: at `offset` of file number `file` of the run."""

    file: int
    job: TensorJob
    offset: int


def placed(outputs: Sequence[Output], layouts: Sequence[FileLayout]) -> Iterator[tuple[PlacedTensor, ...]]:
    """Yield every tensor as each output has it; `layouts` are those of all files, output by output."""
    numbered = enumerate(layouts)
    each = [
        [
            PlacedTensor(number, job, offset)
            for planned, (number, layout) in zip(output, itertools.islice(numbered, len(output)), strict=True)
            for job, offset in zip(planned.tensors, layout.offsets, strict=True)
        ]
        for output in outputs
    ]
    return zip(*each, strict=True)


@dataclass(frozen=True, slots=True)
class PlacedPart:
    """A part of a tensor, as each output has it: its number, its first row there, and the number of its first task."""

    each: Sequence[PlacedTensor]
    index: int
    row: int
    first: int

    @property
    def part(self) -> Part:
        """The part itself."""
        return self.each[0].job.parts[self.index]

    def tasks(self) -> Iterator[Task]:
        """Cut the part into tasks."""
        job, part, row = self.each[0].job, self.part, self.row
        for number, (start, stop, rows) in enumerate(self._pieces(), self.first):
            targets = tuple(_target(tensor, row, rows) for tensor in self.each)
            yield Task(number, job.name, job.shape, part, self.index, start, stop, targets)
            row += rows

    def whole(self) -> tuple[Target, ...]:
        """Return where the whole part goes, in each output."""
        return tuple(_target(tensor, self.row, self.part.rows) for tensor in self.each)

    def _pieces(self) -> Iterator[tuple[int, int, int]]:
        job = self.each[0].job
        return _moved(self.part) if job.foreign else _pieces(self.part, job.shape[-1])

    def end(self) -> tuple[int, int]:
        """Return the row and the task that come after the part."""
        part, job = self.part, self.each[0].job
        if part.transposed:
            return self.row + part.rows, self.first + 1
        step = 1 if job.foreign else _step(job.shape[-1])
        return self.row + part.rows, self.first - (part.start - part.stop) // step


def tasks(tensors: Iterable[Sequence[PlacedTensor]]) -> Iterator[Task]:
    """Cut every part of every tensor into tasks of about CHUNK_VALUES values; a transposed part stays whole.

    In all outputs a tensor has the same shape and parts; its types may differ.
    """
    for part in parts(tensors):
        yield from part.tasks()


def parts(tensors: Iterable[Sequence[PlacedTensor]]) -> Iterator[PlacedPart]:
    """Yield every part of every tensor."""
    first = 0
    for each in tensors:
        row = 0
        for index in range(len(each[0].job.parts)):
            part = PlacedPart(each, index, row, first)
            yield part
            row, first = part.end()


def _pieces(part: Part, columns: int) -> Iterator[tuple[int, int, int]]:
    """Yield first and last source row of each task, and how many rows of the output it gives."""
    if part.transposed:
        yield part.start, part.stop, part.rows
        return
    step = _step(columns)
    for start in range(part.start, part.stop, step):
        stop = min(start + step, part.stop)
        yield start, stop, stop - start


def _step(columns: int) -> int:
    """Return how many rows a task has."""
    return max(1, CHUNK_VALUES // columns)


def _moved(part: Part) -> Iterator[tuple[int, int, int]]:
    """Yield the pieces of a tensor of a foreign type, one at a time."""
    for start in range(part.start, part.stop):
        yield start, start + 1, 1


def _target(tensor: PlacedTensor, row: int, rows: int) -> Target:
    job = tensor.job
    if job.foreign is not None:
        begin, end = row * PIECE_BYTES, min((row + rows) * PIECE_BYTES, job.foreign.nbytes)
        return Target(tensor.file, job.type, None, tensor.offset + begin, end - begin)
    size = job.spec.row_bytes
    return Target(tensor.file, job.type, job.via, tensor.offset + row * size, rows * size)
