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
def decode_e2m1(codes: NDArray[np.uint8], scales: NDArray[np.float64], group: int, out: NDArray[np.float32]) -> None:
    """Write 4-bit floats times the scale of their group into `out` [rows, cols]; the low half of a byte comes first.

    The product is computed in float64, where it is exact, and rounded once.
    """
    rows, cols = out.shape
    for row in range(rows):
        for col in range(cols):
            code = codes[row, col >> 1] >> (col & 1) * 4 & 15
            low = code & 7
            # 0, 1, 2, 3, 4, 6, 8, 12: twice the value.
            doubled = float(low) if low < 4 else float((low & 1 | 2) << (low >> 1) - 1)
            value = doubled * 0.5 * scales[row, col // group]
            out[row, col] = -value if code > 7 else value


@kernel(nogil=True)
def repack_halves(codes: NDArray[np.uint8], scales: NDArray[np.uint8], half: int, out: NDArray[np.uint8]) -> None:
    """Write blocks of ggml: the bytes of their scales, then groups of `half` bytes, each with values j and j + half.

    codes   uint8 [blocks, n], values 2j and 2j + 1 in a byte, the low half first
    scales  uint8 [blocks, s]
    out     uint8 [blocks, s + n]
    """
    head = scales.shape[1]
    for block in range(codes.shape[0]):
        target = out[block]
        target[:head] = scales[block]
        for begin in range(0, codes.shape[1], half):
            source = codes[block, begin : begin + half]
            for j in range(half >> 1):
                first, second = source[j], source[j + (half >> 1)]
                target[head + begin + 2 * j] = first & 15 | (second & 15) << 4
                target[head + begin + 2 * j + 1] = first >> 4 | second & 0xF0
