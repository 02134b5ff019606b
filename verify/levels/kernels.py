"""The compiled comparisons of the proof; importing this module imports numba."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla.codec.kernel_cache import kernel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@kernel(nogil=True)
def compare_rows(reference: Floats, candidate: Floats, block: int, floor: float, sums: Any, worst: Any) -> None:
    """Add up the difference of two arrays [rows, cols].

    sums   float64 [rows, 4]: Σ(c-r)², Σr², Σc², Σr·c of every row
    worst  float64 [rows, 2]: the largest max|c-r| / max|r| of a row's blocks of `block` values, and its first column; a
           block of smaller values than `floor` is measured against `floor`
    """
    for row in range(reference.shape[0]):
        for first in range(0, reference.shape[1], block):
            peak, size = floor, 0.0
            for col in range(first, min(first + block, reference.shape[1])):
                r, c = float(reference[row, col]), float(candidate[row, col])
                sums[row, 0] += (c - r) * (c - r)
                sums[row, 1] += r * r
                sums[row, 2] += c * c
                sums[row, 3] += r * c
                size = max(size, abs(c - r))
                peak = max(peak, abs(r))
            if size > worst[row, 0] * peak:
                worst[row, 0], worst[row, 1] = size / peak, first
