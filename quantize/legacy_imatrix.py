"""The importance matrix of a legacy file as that of the MLA file made from it.

attn_kv_b is multiplied with normalised latents, attn_v_b in every head with averages of them, so its columns matter
alike. About attn_k_b a legacy matrix says nothing: its input is a head's query.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.container.reader import open_gguf
from gguf_mla.errors import InputError
from gguf_mla.files.output import Extra
from gguf_mla.importance.gguf import MatrixFile
from gguf_mla.importance.matrix import read_imatrix
from gguf_mla.layout.heads import heads_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from gguf_mla.files.readable import Place
    from gguf_mla.importance.matrix import Imatrix

_MLA, _LEGACY = "attn_v_b", "attn_kv_b"
Entry = tuple["NDArray[np.float32]", "NDArray[np.float32]"]


class MlaImatrix(Mapping[str, Entry]):
    """Sums and counts by tensor, read when they are asked for; those of attn_kv_b repeated for every head of attn_v_b.

    legacy  the matrix of a legacy file, read once here; InputError when it is not sound or has no attn_kv_b
    heads   how many there are
    path    what the matrix is called
    files   that it is read from
    """

    def __init__(self, legacy: Imatrix, heads: int, path: Path) -> None:
        self._legacy, self._heads, self.path, self.files = legacy, heads, path, legacy.files
        renamed = {name.replace(f".{_LEGACY}.", f".{_MLA}."): name for name in legacy.names}
        self._sources = renamed | {name: name for name in legacy.names if name in renamed}
        if renamed.keys() <= set(legacy.names):
            raise InputError("has nothing to map: it is not the matrix of a legacy file", file=legacy.files[0])
        for name in legacy.names:  # what is wrong is found before the work begins
            legacy.sums(name)

    def __getitem__(self, name: str) -> Entry:
        source = self._sources[name]
        sums, counts = self._legacy.sums(source)
        repeats = (1 if source == name else self._heads, 1)
        return np.tile(sums, repeats), np.tile(counts, repeats)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def extra(self) -> Extra:
        """Return the matrix in GGUF form, as a file that goes with the model."""
        known = self._legacy
        sizes = {"chunk_count": known.chunk_count, "chunk_size": known.chunk_size}
        matrix = MatrixFile(self, datasets=known.datasets, **sizes)
        return Extra(self.path, matrix.size, matrix.write)


def mla_imatrix(imatrix: Path, model: Place, out: Path) -> MlaImatrix:
    """Open the matrix, GGUF or `.dat`, of a legacy model, to be written beside the file OUT; InputError if unsound."""
    path = out.with_name(out.name.removesuffix(".gguf") + ".imatrix.gguf")
    return MlaImatrix(read_imatrix([imatrix]), heads_of(open_gguf(model)).count, path)
