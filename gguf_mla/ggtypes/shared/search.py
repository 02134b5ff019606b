"""Scale searches that several types share: ggml's `make_qx_quants` and its kin, a block per lane.

All work on rows `at` … `at + count` of x, an array of values, and weigh errors by rows 0 … count of w. They keep ggml's
order of operations, because float32 sums depend on it, and skip what cannot matter: a search returns how to get the
levels (an inverse scale and an offset), not the levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.planes import level_word
from gguf_mla.ggtypes.shared.rounding import nearest, snap

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

NOTHING = 1e-15  # what ggml treats as an all-zero block (GROUP_MAX_EPS)


def extreme(x: Lanes, at: int, count: int) -> tuple[Lanes, Lanes]:
    """Largest magnitude, and the first value that has it."""
    largest = value = lanes.full(0.0)
    for i in range(count):
        candidate = lanes.load(x, at + i)
        magnitude = lanes.fabs(candidate)
        larger = magnitude > largest
        largest = lanes.where(larger, magnitude, largest)
        value = lanes.where(larger, candidate, value)
    return largest, value


def span(x: Lanes, at: int, count: int) -> tuple[Lanes, Lanes]:
    """Smallest and largest value."""
    low = high = lanes.load(x, at)
    for i in range(1, count):
        value = lanes.load(x, at + i)
        low = lanes.where(value < low, value, low)
        high = lanes.where(value > high, value, high)
    return low, high


def reciprocal(value: Lanes) -> Lanes:
    """1 / value, and 0 for 0."""
    return lanes.where(value == 0.0, 0.0, 1.0 / value)


def symmetric_level(x: Lanes, inverse: Lanes, top: int) -> Lanes:
    """F → F: round x · inverse and limit it to -top … top - 1."""
    level = snap(x * inverse)
    level = lanes.where(level < top - 1.0, level, top - 1.0)
    return lanes.where(level > -1.0 * top, level, -1.0 * top)


def symmetric_sums(x: Lanes, at: int, w: Lanes, count: int, inverse: Lanes, top: int) -> tuple[Lanes, Lanes]:
    """Σ w x l and Σ w l² over the levels l of one candidate scale."""
    sum_xl = sum_l2 = lanes.full(0.0)
    for i in range(count):
        value, weight = lanes.load(x, at + i), lanes.load(w, i)
        level = symmetric_level(value, inverse, top)
        sum_xl = sum_xl + weight * value * level
        sum_l2 = sum_l2 + weight * level * level
    return sum_xl, sum_l2


def fit_symmetric(x: Lanes, at: int, w: Lanes, count: int, top: int) -> tuple[Lanes, Lanes, Lanes]:
    """Fit scale · l, l in -top … top - 1, by weighted least squares over 19 candidates (`make_qx_quants`, rmse_type 1).

    Returns the scale, the inverse scale the levels come from, and the mask of lanes that are all zero: ggml writes
    level -top there.
    """
    largest, value = extreme(x, at, count)
    empty = largest < NOTHING
    value = lanes.where(empty, 1.0, value)
    inverse = lanes.full(-1.0 * top) / value
    sum_xl, sum_l2 = symmetric_sums(x, at, w, count, inverse, top)
    scale = lanes.where(sum_l2 != 0.0, sum_xl / sum_l2, 0.0)
    best = scale * sum_xl
    for step in range(-9, 10):
        if step != 0:
            candidate = -(lanes.full(step) * 0.1 + 1.0 * top) / value
            sum_xl, sum_l2 = symmetric_sums(x, at, w, count, candidate, top)
            better = (sum_l2 > 0.0) & (sum_xl * sum_xl > best * sum_l2)
            scale = lanes.where(better, sum_xl / sum_l2, scale)
            best = lanes.where(better, scale * sum_xl, best)
            inverse = lanes.where(better, candidate, inverse)
    return lanes.where(empty, 0.0, scale), inverse, empty


def mean_square(x: Lanes, at: int, count: int, factor: float) -> Lanes:
    """Factor · Σ x² / count, summed in order."""
    total = lanes.full(0.0)
    for i in range(count):
        value = lanes.load(x, at + i)
        total = total + value * value
    return total * factor / (1.0 * count)


def store_squares(x: Lanes, at: int, count: int, out: Lanes, to: int) -> None:
    """out[to:] = x², ggml's weights without importance where errors of large values count more."""
    for i in range(count):
        value = lanes.load(x, at + i)
        lanes.store(out, to + i, value * value)


def spread_weights(x: Lanes, at: int, w: Lanes, count: int, square: Lanes, out: Lanes, to: int) -> Lanes:
    """out[to:] = w · √(square + x²), ggml's importance weights; returns their sum."""
    total = lanes.full(0.0)
    for i in range(count):
        value = lanes.load(x, at + i)
        weight = lanes.load(w, at + i) * lanes.sqrt(square + value * value)
        lanes.store(out, to + i, weight)
        total = total + weight
    return total


def store_signed_levels(x: Lanes, top: int, levels: Lanes, to: int) -> Lanes:
    """Levels 0 … 2 top - 1 of 32 values, I in the place of F; returns the scale that maps the extreme value to -top.

    Where the scale is too small for a reciprocal, a level is that of NaN, whose low bits are 0.
    """
    _, value = extreme(x, 0, 32)
    scale = value / (-1.0 * top)
    inverse = reciprocal(scale)
    for i in range(32):
        level = lanes.to_int(lanes.load(x, i) * inverse + (top + 0.5))
        level = lanes.where(level > 2 * top - 1, 2 * top - 1, level)
        lanes.store(levels, to + i, lanes.from_bits(level))
    return scale


def store_symmetric_levels(
    x: Lanes, at: int, count: int, inverse: Lanes, empty: Lanes, top: int, levels: Lanes, to: int
) -> None:
    """Levels 0 … 2 top - 1, I in the place of F, of what `fit_symmetric` found."""
    for i in range(count):
        level = symmetric_level(lanes.load(x, at + i), inverse, top) + 1.0 * top
        lanes.store(levels, to + i, lanes.from_bits(level_word(lanes.where(empty, 0.0, level))))


def store_largest_levels(values: Lanes, at: int, count: int, top: int, to: int) -> Lanes:
    """Levels 0 … top, F in rows to …, of non-negative values by the scale that maps the largest to top; returns it."""
    largest = lanes.full(0.0)
    for j in range(count):
        value = lanes.load(values, at + j)
        largest = lanes.where(value > largest, value, largest)
    inverse = lanes.where(largest > 0.0, lanes.full(top) / largest, 0.0)
    for j in range(count):
        level = nearest(inverse * lanes.load(values, at + j)) & 255
        lanes.store(values, to + j, lanes.to_float(lanes.where(level > top, top, level)))
    return largest / (1.0 * top)


def store_fitted_levels(values: Lanes, at: int, w: int, count: int, top: int, to: int) -> Lanes:
    """Levels, F in rows to …, of non-negative values in rows at … weighed by rows w …; returns their scale.

    Nine scales are tried, then each level is moved if that improves the fit (`make_qp_quants`). ggml keeps levels in
    bytes: a negative value's level wraps.
    """
    largest = lanes.full(0.0)
    for j in range(count):
        value = lanes.load(values, at + j)
        largest = lanes.where(value > largest, value, largest)
    empty = largest < NOTHING
    largest = lanes.where(empty, 1.0, largest)
    inverse = _best_inverse(values, at, w, count, top, largest)
    sum_xl = sum_l2 = lanes.full(0.0)
    for j in range(count):
        value, weight = lanes.load(values, at + j), lanes.load(values, w + j)
        level = _limited(inverse * value, top)
        lanes.store(values, to + j, lanes.to_float(lanes.to_int(level) & 255))
        sum_xl = sum_xl + weight * value * level
        sum_l2 = sum_l2 + weight * level * level
    for _ in range(5):
        sum_xl, sum_l2 = _improve(values, at, w, count, top, to, sum_xl, sum_l2)
    for j in range(count):
        lanes.store(values, to + j, lanes.where(empty, 0.0, lanes.load(values, to + j)))
    return lanes.where(empty | ~(sum_l2 > 0.0), 0.0, sum_xl / sum_l2)


def _limited(value: Lanes, top: int) -> Lanes:
    """F → F: to nearest, at most top."""
    level = nearest(value)
    return lanes.to_float(lanes.where(level > top, top, level))


def _best_inverse(values: Lanes, at: int, w: int, count: int, top: int, largest: Lanes) -> Lanes:
    """Return the inverse scale, of nine, with the smallest weighted squared error; the first in doubt."""
    inverse = lanes.full(top) / largest
    best = lanes.full(0.0)
    for j in range(count):
        value = lanes.load(values, at + j)
        off = value - 1.0 / inverse * lanes.to_float(nearest(inverse * value) & 255)
        best = best + lanes.load(values, w + j) * off * off
    for step in range(-4, 5):
        if step != 0:
            candidate = (lanes.full(step) * 0.1 + 1.0 * top) / largest
            error = lanes.full(0.0)
            for j in range(count):
                value = lanes.load(values, at + j)
                off = value - 1.0 / candidate * _limited(candidate * value, top)
                error = error + lanes.load(values, w + j) * off * off
            better = error < best
            best, inverse = lanes.where(better, error, best), lanes.where(better, candidate, inverse)
    return inverse


def _improve(
    values: Lanes, at: int, w: int, count: int, top: int, to: int, sum_xl: Lanes, sum_l2: Lanes
) -> tuple[Lanes, Lanes]:
    """One round over all levels: each moves to its optimum given the others, if that raises the explained square."""
    for j in range(count):
        value, weight, level = lanes.load(values, at + j), lanes.load(values, w + j), lanes.load(values, to + j)
        rest_xl = sum_xl - weight * value * level
        rest_l2 = sum_l2 - weight * level * level
        moved = _limited(value * rest_l2 / rest_xl, top)
        tried = (rest_xl > 0.0) & (rest_l2 > 0.0) & (moved != level)
        new_xl = rest_xl + weight * value * moved
        new_l2 = rest_l2 + weight * moved * moved
        better = tried & (new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2)
        sum_xl, sum_l2 = lanes.where(better, new_xl, sum_xl), lanes.where(better, new_l2, sum_l2)
        kept = lanes.where(better, lanes.to_float(lanes.to_int(moved) & 255), level)
        lanes.store(values, to + j, kept)
    return sum_xl, sum_l2
