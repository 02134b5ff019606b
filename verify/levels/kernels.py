"""The compiled comparisons of the proof; importing this module imports numba."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.codec.kernel_cache import kernel

if TYPE_CHECKING:
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


TOTALS = np.dtype(
    [
        ("reference_peak", np.float64),
        ("reference_sum", np.float64),
        ("reference_best", np.int64),
        ("candidate_peak", np.float64),
        ("candidate_sum", np.float64),
        ("candidate_best", np.int64),
        ("cross", np.float64),
    ]
)
"""What is kept of a token's two distributions while their logits r and c are read.

peak   the largest logit so far, -inf before the first
sum    Σ exp(logit - peak)
best   the likeliest token so far
cross  Σ exp(r - reference_peak)·(r - c)
"""


@kernel(nogil=True)
def add_logits(reference: Floats, candidate: Floats, first: int, totals: Any) -> None:
    """Take in the logits [N, rows] of tokens `first` onward from both sides; totals [N] of TOTALS."""
    for token in range(reference.shape[0]):
        total = totals[token]
        r_max, r_sum, r_best = total.reference_peak, total.reference_sum, total.reference_best
        c_max, c_sum, c_best = total.candidate_peak, total.candidate_sum, total.candidate_best
        cross = total.cross
        for i in range(reference.shape[1]):
            r, c = float(reference[token, i]), float(candidate[token, i])
            if r > r_max:
                shrink = math.exp(r_max - r)
                r_sum, cross, r_max, r_best = r_sum * shrink, cross * shrink, r, first + i
            if c > c_max:
                c_sum, c_max, c_best = c_sum * math.exp(c_max - c), c, first + i
            weight = math.exp(r - r_max)
            r_sum += weight
            cross += weight * (r - c)
            c_sum += math.exp(c - c_max)
        total.reference_peak, total.reference_sum, total.reference_best = r_max, r_sum, r_best
        total.candidate_peak, total.candidate_sum, total.candidate_best = c_max, c_sum, c_best
        total.cross = cross
