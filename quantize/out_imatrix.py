"""The importance matrix of a file as that of the file made from it: an entry for each tensor that something serves.

What serves a tensor is what `quantize --imatrix` would take: its own entry, whatever the program that made it calls it;
one row for all heads; that of a weight with the same input, as of a fused tensor and its halves; attn_kv_b's for
attn_v_b, and the mean over attn_v_b's heads for attn_kv_b. About attn_k_b a legacy matrix says nothing: its input is a
head's query. Other programs, which match names and sizes and nothing else, find all of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.files.output import Extra
from gguf_mla.importance.entries import Made
from gguf_mla.importance.gguf import MatrixFile
from gguf_mla.importance.matrix import read_imatrix
from gguf_mla.importance.names import STAND_INS, others_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gguf_mla.importance.matrix import Imatrix

Entry = tuple["NDArray[np.float32]", "NDArray[np.float32]"]


class OutImatrix(Mapping[str, Entry]):
    """Sums and counts by tensor of an output, read when they are asked for.

    given   the matrix of the input
    shapes  those of the output's tensors, by name
    path    what the matrix is called
    files   that it is read from

    InputError when the matrix is not sound, does not fit the tensors, or says nothing of any.
    """

    def __init__(self, given: Imatrix, shapes: Mapping[str, Sequence[int]], path: Path) -> None:
        self._given, self._shapes, self.path, self.files = given, shapes, path, given.files
        serving = {name: _serving(name, given) for name in shapes}
        self._sources = {name: entry for name, entry in serving.items() if entry is not None}
        if not self._sources:
            raise InputError("holds no importance of any tensor of this model", file=given.files[0])
        for name in self._sources:  # what is wrong is found before the work begins
            given.rows(name, shapes[name])

    def __getitem__(self, name: str) -> Entry:
        sums, counts = self._given.sums(self._sources[name])
        shape = self._shapes[name]
        rows, cols = math.prod(shape[:-2]), shape[-1]
        if sums.size == rows * cols:
            return sums, counts
        if sums.size == cols:
            return np.tile(sums, (rows, 1)), np.tile(counts, (rows, 1))
        heads = (sums / np.maximum(counts, 1)).reshape(-1, cols)
        mean = heads.mean(axis=0, keepdims=True, dtype=np.float64) * counts.mean(dtype=np.float64)
        return mean.astype(np.float32), counts.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def extra(self) -> Extra:
        """Return the matrix in GGUF form, as a file that goes with the model."""
        known = self._given
        sizes = {"chunk_count": known.chunk_count, "chunk_size": known.chunk_size}
        made = {name: Made.of(partial(self.__getitem__, name)) for name in self}
        matrix = MatrixFile(made, datasets=known.datasets, **sizes)
        return Extra(self.path, matrix.size, matrix.write)


def out_imatrix(imatrix: Path, shapes: Mapping[str, Sequence[int]], out: Path) -> OutImatrix:
    """Open an input's matrix, GGUF or `.dat`, to be written for OUT's tensors beside OUT; InputError if unsound."""
    path = out.with_name(out.name.removesuffix(".gguf") + ".imatrix.gguf")
    return OutImatrix(read_imatrix([imatrix]), shapes, path)


def _serving(name: str, given: Imatrix) -> str | None:
    return name if name in given.names else next(others_for(name, given.names, STAND_INS), None)
