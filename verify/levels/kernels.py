"""The compiled comparisons of the proof; importing this module imports numba."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from numba import njit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int64]


@njit(nogil=True, cache=True)
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


@njit(nogil=True, cache=True)
def add_logits(reference: Floats, candidate: Floats, first: int, state: Any, best: Numbers) -> None:
    """Take in the logits [N, rows] of tokens `first` onward from both sides, for everything a distribution is asked.

    state  float64 [N, 5]: running maximum and Σexp of the reference, the same of the candidate, Σ p·(r-c) before it is
           normalised by the reference's Σexp
    best   int64 [N, 2]: the likeliest token of each side
    """
    for token in range(reference.shape[0]):
        r_max, r_sum, c_max, c_sum, cross = state[token]
        for i in range(reference.shape[1]):
            r, c = float(reference[token, i]), float(candidate[token, i])
            if r > r_max:
                shrink = math.exp(r_max - r)
                r_sum, cross, r_max, best[token, 0] = r_sum * shrink, cross * shrink, r, first + i
            if c > c_max:
                c_sum, c_max, best[token, 1] = c_sum * math.exp(c_max - c), c, first + i
            weight = math.exp(r - r_max)
            r_sum += weight
            cross += weight * (r - c)
            c_sum += math.exp(c - c_max)
        state[token, 0], state[token, 1], state[token, 2], state[token, 3], state[token, 4] = (
            r_max,
            r_sum,
            c_max,
            c_sum,
            cross,
        )
