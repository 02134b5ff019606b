"""Compiled decoders of checkpoint formats; importing this module imports numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.codec.kernel_cache import kernel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@kernel(nogil=True)
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


@kernel(nogil=True)
def decode_groups(codes: NDArray[np.uint8], scales: NDArray[np.float32], group: int, out: NDArray[np.float32]) -> None:
    """Write (nibble - 8) times the scale of its group into `out` [rows, cols]; the low nibble of a byte comes first.

    The product is computed in float64, where it is exact, and rounded once.
    """
    rows, cols = out.shape
    for row in range(rows):
        for number in range(scales.shape[1]):
            scale = scales[row, number]
            for col in range(number * group, min((number + 1) * group, cols)):
                nibble = codes[row, col >> 1] >> (col & 1) * 4 & 15
                out[row, col] = (nibble - 8) * scale


@kernel(nogil=True)
def repack_q4_0(codes: NDArray[np.uint8], scales: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Write blocks of Q4_0: a scale's two bytes, then 16 bytes, each with values j and j + 16 of its 32.

    codes   uint8 [blocks, 16], values 2j and 2j + 1 in a byte, the low nibble first
    scales  uint8 [blocks, 2], float16 each
    out     uint8 [blocks, 18]
    """
    for block in range(codes.shape[0]):
        source, target = codes[block], out[block]
        target[0], target[1] = scales[block]
        for j in range(8):
            first, second = source[j], source[j + 8]
            target[2 + 2 * j] = first & 15 | (second & 15) << 4
            target[3 + 2 * j] = first >> 4 | second & 0xF0
