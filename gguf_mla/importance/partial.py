"""Parts of an importance matrix: the sums over some chunks of a text, kept so that adding parts rounds nothing.

A part is a GGUF file of its own kind, which no quantizer takes for a matrix. All parts of a run have the same `run`, a
digest of the tokens and of what was asked for, and each says which chunks it has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.container.reader import GgufFile, GgufTensor, open_gguf
from gguf_mla.container.values import Kind, array, string, u32
from gguf_mla.container.writer import MAGIC, TensorSpec, lay_out
from gguf_mla.errors import InputError
from gguf_mla.files.bounds import SUMS as SUMS_AT_MOST
from gguf_mla.files.bounds import bounded
from gguf_mla.files.input import InputFile
from gguf_mla.importance.entries import COUNTS, PLAIN, SUMS
from gguf_mla.importance.exact import Exact, Sums
from gguf_mla.importance.gguf import PREDICTORS, metadata_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gguf_mla.container.values import Value
    from gguf_mla.files.output import OutputFile

KIND = "imatrix-part"
RUN, TOTAL, RANGES = "imatrix.part.run", "imatrix.part.total", "imatrix.part.chunks"
REST = ".rest"
SUFFIXES = (SUMS, SUMS + REST, COUNTS, PLAIN, PLAIN + REST)


@dataclass(frozen=True)
class About:
    """What a part says of itself.

    run     a digest of what all parts of a run have in common
    total   how many chunks the run has
    ranges  the first and the one after the last of the chunks that are in the part, in rising order
    """

    run: str
    total: int
    ranges: tuple[tuple[int, int], ...]
    datasets: tuple[str, ...]
    chunk_size: int
    predictors: int

    @property
    def chunks(self) -> int:
        """How many chunks are in it."""
        return sum(stop - start for start, stop in self.ranges)

    @property
    def is_whole(self) -> bool:
        """Whether no chunk of the run is missing."""
        return self.ranges == ((0, self.total),)

    def of_matrix(self) -> dict[str, Value]:
        """Return the metadata of a matrix of these sums."""
        return metadata_of(self.datasets, self.chunks, self.chunk_size, self.predictors)

    def of_part(self) -> dict[str, Value]:
        """Return the metadata of a part."""
        known = metadata_of(self.datasets, self.chunks, self.chunk_size, self.predictors, KIND)
        numbers = [number for pair in self.ranges for number in pair]
        return known | {RUN: string(self.run), TOTAL: u32(self.total), RANGES: array(Kind.U32, numbers)}


def part_specs(name: str, shape: tuple[int, int], counts: int) -> list[TensorSpec]:
    """Return the tensors of an entry, in the order of SUFFIXES."""
    return [TensorSpec(name + suffix, (counts, 1) if suffix == COUNTS else shape, "F64") for suffix in SUFFIXES]


@dataclass(frozen=True)
class Part:
    """A part that is open."""

    path: Path
    about: About
    tensors: Mapping[str, tuple[GgufTensor, ...]]

    def sums(self, name: str) -> Sums:
        """Return what it has of a tensor; InputError for sums that are not finite."""
        whole, rest, counts, plain, plain_rest = map(_doubles, self.tensors[name])
        return Sums(Exact(whole, rest), Exact(plain, plain_rest), counts.reshape(-1))

    def counts(self, name: str) -> NDArray[np.float64]:
        """Return the tokens added of a tensor, [n] or [1], without reading its sums."""
        return _doubles(self.tensors[name][SUFFIXES.index(COUNTS)]).reshape(-1)

    def shapes(self) -> dict[str, tuple[tuple[int, int], int]]:
        """Return every entry's shape [n, cols] and its number of counts."""
        return {
            name: ((math.prod(sums.shape[:-1]), sums.shape[-1]), math.prod(counts.shape))
            for name, (sums, _, counts, *_others) in self.tensors.items()
        }


def _doubles(tensor: GgufTensor) -> NDArray[np.float64]:
    values = tensor.file.read(tensor.offset, tensor.nbytes).view(np.float64)
    if not np.isfinite(values).all():
        raise InputError("holds a sum that is not a finite number", file=tensor.file.name, tensor=tensor.name)
    return values.reshape(-1, tensor.shape[-1])


def is_part(path: Path) -> bool:
    """Whether a file is a part of a matrix."""
    with InputFile(path) as opened:
        is_gguf = opened.read(0, min(4, opened.size)).tobytes() == MAGIC
    return is_gguf and open_gguf(path).metadata.get("general.type") == KIND


def open_part(path: Path) -> Part:
    """Open a part; InputError where it is none, or not sound."""
    return part_of(open_gguf(path), path)


def part_of(file: GgufFile, path: Path) -> Part:
    """Return the part that `file`, opened from `path`, is; InputError where it is none, or not sound."""
    if file.metadata.get("general.type") != KIND:
        raise InputError("is not a part of an importance matrix", file=path)
    names = [name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)]
    return Part(path, _about(file), {name: _entry(file, name) for name in names})


def _entry(file: GgufFile, name: str) -> tuple[GgufTensor, ...]:
    found = tuple(file.tensors.get(name + suffix) for suffix in SUFFIXES)
    tensors = tuple(tensor for tensor in found if tensor is not None)
    if len(tensors) < len(SUFFIXES) or {tensor.type for tensor in tensors} != {"F64"}:
        raise InputError("lacks some of its sums", file=file.path, tensor=name, expected="F64 " + " ".join(SUFFIXES))
    sums, rest, counts, plain, plain_rest = tensors
    bounded(math.prod(sums.shape), SUMS_AT_MOST, "the number of importance values", file=file.path, tensor=name)
    bounded(math.prod(counts.shape), math.prod(sums.shape), "the number of counts", file=file.path, tensor=name)
    if not sums.shape == rest.shape == plain.shape == plain_rest.shape:
        raise InputError("has sums of different shapes", file=file.path, tensor=name)
    return tensors


def _about(file: GgufFile) -> About:
    known = file.metadata
    numbers = list(known.get(RANGES) or ())
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    run, total, size = known.get(RUN), known.get(TOTAL), known.get("imatrix.chunk_size")
    if not (isinstance(run, str) and isinstance(total, int) and isinstance(size, int) and _rising(numbers, total)):
        raise InputError("does not say which chunks of which run it has", file=file.path)
    datasets = tuple(map(str, known.get("imatrix.datasets") or ()))
    predictors = known.get(PREDICTORS, 0)
    return About(run, total, pairs, datasets, size, predictors if type(predictors) is int else 0)


def _rising(numbers: list[Any], most: int) -> bool:
    """Whether numbers are the ends of ranges that rise, up to `most`."""
    whole = len(numbers) > 1 and len(numbers) % 2 == 0 and all(type(number) is int for number in numbers)
    return whole and numbers == sorted(set(numbers)) and numbers[-1] <= most


def joined(parts: Sequence[Part]) -> About:
    """Return what parts are together; InputError where they are not of one run, or have a chunk twice."""
    first = parts[0].about
    for part in parts[1:]:
        if part.about.run != first.run or part.shapes() != parts[0].shapes():
            remedy = "Merge only what the same command made, with other --split-work"
            raise InputError(f"is not a part of the run that {parts[0].path.name} is of", file=part.path, remedy=remedy)
    ranges: list[tuple[int, int]] = []
    for start, stop in sorted(pair for part in parts for pair in part.about.ranges):
        if ranges and start < ranges[-1][1]:
            raise InputError(f"chunk {start + 1} is in two of the parts", file=parts[-1].path)
        if ranges and start == ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], stop)
        else:
            ranges.append((start, stop))
    return About(first.run, first.total, tuple(ranges), first.datasets, first.chunk_size, first.predictors)


class PartFile:
    """A part that is to be written; `sums` gives what is known of a tensor, in the order of their names."""

    def __init__(
        self, about: About, shapes: Mapping[str, tuple[tuple[int, int], int]], sums: Callable[[str], Sums]
    ) -> None:
        self._names, self._sums = sorted(shapes), sums
        specs = [spec for name in self._names for spec in part_specs(name, *shapes[name])]
        self._layout = lay_out(about.of_part(), specs)
        self.size = self._layout.size

    def write(self, file: OutputFile) -> None:
        """Write all of it; MachineError when that fails."""
        file.write(np.frombuffer(self._layout.head, np.uint8), 0)
        for data, offset in zip(self._arrays(), self._layout.offsets, strict=True):
            file.write(np.ascontiguousarray(data, np.float64), offset)

    def _arrays(self) -> Iterator[NDArray[Any]]:
        for name in self._names:
            yield from self._sums(name).stored()
