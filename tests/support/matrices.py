"""An importance matrix in a file, of sums that a test has thought of."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gguf_mla.importance.entries import Made
from gguf_mla.importance.gguf import MatrixFile, write_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


def write_imatrix(
    path: Path,
    entries: Mapping[str, tuple[NDArray[np.float32], ...]],
    *,
    datasets: Sequence[str],
    chunk_count: int,
    chunk_size: int,
    predictors: int = 0,
) -> None:
    """Write sums [n, cols] and counts [n] of each tensor, as `MatrixFile` has them."""
    made = {name: Made.of(partial(tuple, entry)) for name, entry in entries.items()}
    sizes = {"chunk_count": chunk_count, "chunk_size": chunk_size, "predictors": predictors}
    write_matrix(path, MatrixFile(made, datasets=datasets, **sizes))
