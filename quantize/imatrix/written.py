"""Matrices that are to be written: the sum of parts, each entry made when it is asked for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gguf_mla.importance.dat import DatFile
from gguf_mla.importance.entries import Made
from gguf_mla.importance.gguf import MatrixFile, stored_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gguf_mla.importance.entries import Entry
    from gguf_mla.importance.exact import Sums
    from gguf_mla.importance.gguf import Written
    from gguf_mla.importance.partial import Part


def stored(sums: Sums) -> Entry:
    """Return sums as a file has them."""
    squares, counts, plain = sums.rounded()
    shape = stored_shape(squares.shape)
    return squares.reshape(shape), counts, plain.reshape(shape)


def counted(parts: Sequence[Part], name: str) -> NDArray[np.float64]:
    """Return the tokens that parts have of a tensor together, without reading their sums."""
    first, *others = (part.counts(name) for part in parts)
    for other in others:
        first = first + other
    return first


def total(parts: Sequence[Part], name: str) -> Sums:
    """Return what parts have of a tensor together."""
    first, *others = (part.sums(name) for part in parts)
    for other in others:
        first = first + other
    return first


def summed(parts: Sequence[Part], form: str) -> Written:
    """Return the sum of parts as a matrix in the form "gguf" or "dat"."""
    made = {
        name: Made(stored_shape(shape), counted(parts, name), 3, partial(_entry, parts, name))
        for name, (shape, _) in parts[0].shapes().items()
    }
    about = parts[0].about
    chunks = sum(part.about.chunks for part in parts)
    datasets = [*dict.fromkeys(name for part in parts for name in part.about.datasets)]
    if form == "dat":
        return DatFile(made, ", ".join(datasets), chunks, about.chunk_size)
    sizes = {"chunk_count": chunks, "chunk_size": about.chunk_size, "predictors": about.predictors}
    return MatrixFile(made, datasets=datasets, **sizes)


def _entry(parts: Sequence[Part], name: str) -> Entry:
    return stored(total(parts, name))
