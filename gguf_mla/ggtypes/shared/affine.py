"""Searches for a scale and a minimum, x ≈ scale · l + minimum: ggml's `make_qkx2_quants` and `make_qkx3_quants`.

Both start from the range, then try a row of inverse scales; each candidate's levels give a weighted least-squares fit,
which is kept if its error is smaller. The minimum in use is the best one so far, so candidates depend on each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.planes import level_word
from gguf_mla.ggtypes.shared.rounding import clamp, nearest, snap
from gguf_mla.ggtypes.shared.search import reciprocal, span
from gguf_mla.lanes.binding import unbound, variant

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

LARGEST = 3.4028234663852886e38  # float32's


def exact_level(value: Lanes, top: int) -> Lanes:
    """F → F: `nearest`, limited to 0 … top; what it does beyond 2**22 and with NaN shows in ggml's bytes."""
    return lanes.to_float(clamp(nearest(value), 0, top))


def guarded_level(value: Lanes, top: int) -> Lanes:
    """F → F: to nearest, limited to 0 … top, NaN to 0."""
    limited = lanes.where(value < 1.0 * top, value, 1.0 * top)
    return snap(lanes.where(value > 0.0, limited, 0.0))


def square(value: Lanes) -> Lanes:
    """Squared error."""
    return value * value


def magnitude(value: Lanes) -> Lanes:
    """Absolute error."""
    return lanes.fabs(value)


level_of, cost = unbound("level_of"), unbound("cost")  # what `variant` gives


def weighted_sums(x: Lanes, at: int, w: Lanes, count: int) -> tuple[Lanes, Lanes]:
    """Σ w and Σ w x."""
    sum_w = lanes.load(w, 0)
    sum_x = sum_w * lanes.load(x, at)
    for i in range(1, count):
        weight = lanes.load(w, i)
        sum_w = sum_w + weight
        sum_x = sum_x + weight * lanes.load(x, at + i)
    return sum_w, sum_x


def level_sums(
    x: Lanes, at: int, w: Lanes, levels: Lanes, count: int, inverse: Lanes, minimum: Lanes, top: int
) -> tuple[Lanes, Lanes, Lanes]:
    """Σ w l, Σ w l², Σ w l x over a candidate's levels, which are left in `levels`."""
    sum_l = sum_l2 = sum_xl = lanes.full(0.0)
    for i in range(count):
        value, weight = lanes.load(x, at + i), lanes.load(w, i)
        level = level_of(inverse * (value - minimum), top)
        lanes.store(levels, i, level)
        weighted = weight * level
        sum_l = sum_l + weighted
        sum_l2 = sum_l2 + weighted * level
        sum_xl = sum_xl + weighted * value
    return sum_l, sum_l2, sum_xl


def error_of(x: Lanes, at: int, w: Lanes, levels: Lanes, count: int, scale: Lanes, minimum: Lanes) -> Lanes:
    """Σ w · cost(scale · l + minimum - x)."""
    total = lanes.full(0.0)
    for i in range(count):
        off = scale * lanes.load(levels, i) + minimum - lanes.load(x, at + i)
        total = total + lanes.load(w, i) * cost(off)
    return total


def least_squares(sum_w: Lanes, sum_x: Lanes, sum_l: Lanes, sum_l2: Lanes, sum_xl: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """Scale and minimum (never above 0) of a weighted linear fit, and its determinant."""
    determinant = sum_w * sum_l2 - sum_l * sum_l
    scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
    minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
    positive = minimum > 0.0
    return lanes.where(positive, sum_xl / sum_l2, scale), lanes.where(positive, 0.0, minimum), determinant


def _fit(
    x: Lanes, at: int, w: Lanes, levels: Lanes, count: int, top: int, begin: float, step: float, steps: int
) -> tuple[Lanes, Lanes, Lanes, Lanes]:  # fmt: skip
    """Return the best of 1 + steps candidates; `levels` is room for `count` rows.

    Returns scale and minimum, and the inverse scale and offset that give the levels: level_of(inverse · (x - offset)).
    """
    low, high = span(x, at, count)
    sum_w, sum_x = weighted_sums(x, at, w, count)
    low = lanes.where(low > 0.0, 0.0, low)
    flat = high == low
    inverse = lanes.full(top) / (high - low)
    scale, minimum, offset = 1.0 / inverse, low, low
    inverse = lanes.where(inverse > LARGEST, 0.0, inverse)  # a range so small that ggml's levels all end up 0
    level_sums(x, at, w, levels, count, inverse, low, top)
    best = error_of(x, at, w, levels, count, scale, low)
    for index in range(steps):
        candidate = (lanes.full(index) * step + begin + 1.0 * top) / (high - minimum)
        sums = level_sums(x, at, w, levels, count, candidate, minimum, top)
        new_scale, new_minimum, determinant = least_squares(sum_w, sum_x, sums[0], sums[1], sums[2])
        error = error_of(x, at, w, levels, count, new_scale, new_minimum)
        better = (determinant > 0.0) & (error < best)
        inverse, offset = lanes.where(better, candidate, inverse), lanes.where(better, minimum, offset)
        best, scale = lanes.where(better, error, best), lanes.where(better, new_scale, scale)
        minimum = lanes.where(better, new_minimum, minimum)
    scale, inverse = lanes.where(flat, 0.0, scale), lanes.where(flat, 0.0, inverse)
    return scale, lanes.where(flat, low, minimum), inverse, lanes.where(flat, 0.0, offset)


# ggml's search with importance (`make_qkx3_quants`), and without (`make_qkx2_quants`), Q2_K's by absolute error.
fit = variant(_fit, level_of=guarded_level, cost=square)
fit_exact = variant(_fit, level_of=exact_level, cost=square)
fit_absolute = variant(_fit, level_of=exact_level, cost=magnitude)


def store_affine_levels(
    x: Lanes, at: int, count: int, inverse: Lanes, offset: Lanes, top: int, levels: Lanes, to: int
) -> None:
    """Levels 0 … top, I in the place of F, of what `fit` found."""
    for i in range(count):
        level = guarded_level(inverse * (lanes.load(x, at + i) - offset), top)
        lanes.store(levels, to + i, lanes.from_bits(level_word(level)))


def store_range_levels(x: Lanes, top: int, levels: Lanes, to: int) -> tuple[Lanes, Lanes]:
    """Levels 0 … top of 32 values, I in the place of F; returns the scale and minimum that map their range to it.

    Where the scale is too small for a reciprocal, a level is that of NaN, whose low bits are 0.
    """
    low, high = span(x, 0, 32)
    scale = (high - low) / (1.0 * top)
    inverse = reciprocal(scale)
    for i in range(32):
        level = lanes.to_int((lanes.load(x, i) - low) * inverse + 0.5)
        lanes.store(levels, to + i, lanes.from_bits(lanes.where(level > top, top, level)))
    return scale, low
