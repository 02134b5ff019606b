"""Matrices that are to be written: entries made when they are asked for, and the sum of parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from gguf_mla.importance.dat import DatFile
from gguf_mla.importance.gguf import MatrixFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gguf_mla.importance.exact import Sums
    from gguf_mla.importance.gguf import Written
    from gguf_mla.importance.partial import Part

Entry = tuple["NDArray[np.float32]", ...]


class Entries(Mapping[str, Entry]):
    """Entries by name, each made when it is asked for: a matrix of a large model is larger than what fits in memory."""

    def __init__(self, made: Mapping[str, Callable[[], Entry]]) -> None:
        self._made = made

    def __getitem__(self, name: str) -> Entry:
        return self._made[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def stored(sums: Sums) -> Entry:
    """Return sums as a file has them: a single row is a vector."""
    squares, counts, plain = sums.rounded()
    if len(squares) > 1:
        return squares, counts, plain
    return squares[0], counts, plain[0]


def total(parts: Sequence[Part], name: str) -> Sums:
    """Return what parts have of a tensor together."""
    first, *others = (part.sums(name) for part in parts)
    for other in others:
        first = first + other
    return first


def summed(parts: Sequence[Part], form: str) -> Written:
    """Return the sum of parts as a matrix in the form "gguf" or "dat"."""
    made = {name: partial(_entry, parts, name) for name in parts[0].tensors}
    about = parts[0].about
    chunks = sum(part.about.chunks for part in parts)
    datasets = [*dict.fromkeys(name for part in parts for name in part.about.datasets)]
    if form == "dat":
        return DatFile(Entries(made), ", ".join(datasets), chunks, about.chunk_size)
    sizes = {"chunk_count": chunks, "chunk_size": about.chunk_size, "predictors": about.predictors}
    return MatrixFile(Entries(made), datasets=datasets, **sizes)


def _entry(parts: Sequence[Part], name: str) -> Entry:
    return stored(total(parts, name))
