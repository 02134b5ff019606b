"""Compiled decoders of checkpoint formats; importing this module imports numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numba import njit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@njit(nogil=True, cache=True)
def decode_blocks(
    codes: NDArray[np.uint8],
    table: NDArray[np.float32],
    scales: NDArray[np.float32],
    first_row: int,
    block_rows: int,
    block_cols: int,
    out: NDArray[np.float32],
) -> None:
    """Write table[code] times the scale of its block into `out` [rows, cols]; `first_row` is the number of row 0."""
    rows, cols = codes.shape
    for row in range(rows):
        block_row = (first_row + row) // block_rows
        for block in range(scales.shape[1]):
            scale = scales[block_row, block]
            begin = block * block_cols
            end = min(begin + block_cols, cols)
            # Slices, because LLVM makes no SIMD of indices that numba has to check for being negative.
            source, target = codes[row, begin:end], out[row, begin:end]
            for i in range(source.size):
                target[i] = table[source[i]] * scale
