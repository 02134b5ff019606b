"""IQ1_M: 16 sub-blocks of 16 values, each with a 3-bit scale; groups of 8 are one of 2048 points and a shift."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.grid import MAGNITUDES, SCALES, TRIAL, WEIGHTS, largest_scale, odd_level, point_at
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.search import mean_square, spread_weights, store_squares
from gguf_mla.ggtypes.shared.ternary import (
    LOWEST,
    SUMS,
    choose_point,
    group_sums,
    largest_magnitude,
    rank,
    shifted,
    sort_into,
    store_levels,
    sum_prefixes,
)
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

# uint8[32]; per sub-block uint8: twice 3 bits of point and the shift; 4 times uint16: 4 scales of 3 bits, 4 bits of d
POINTS, HIGH_BITS, LEVEL_SCALES = 0, 32, 48
# Rows of scratch: prefix sums per half of a sub-block; per sub-block both points and which of four pairs of shifts.
WX_A, WX_B, W_A, W_B = range(SUMS, SUMS + 68, 17)
FOUND = SUMS + 68
SHIFTS = FOUND + 32
WEIGHED = SHIFTS + 16
NOTHING = 1e-7
TYPE = TensorType("IQ1_M", id=29, block=256, bytes=32 + 16 + 8, scratch=WEIGHED + 256, module_name=__name__)


def tables() -> tuple[Any, ...]:
    """Return the grid and its neighbours."""
    found: tuple[Any, ...] = import_module("gguf_mla.ggtypes.shared.grid_tables").grid_tables("IQ1_M", 3, rounded=False)
    return found


def encode(x: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Errors weighed by x²; otherwise as with importance."""
    store_squares(x, 0, 256, scratch, WEIGHED)
    _encode(x, scratch, tables, out)


def encode_weighted(x: Lanes, w: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Each sub-block is split optimally, moved to grid points and refitted; at last the whole block's scale is."""
    spread_weights(x, 0, w, 256, mean_square(x, 0, 256, 2.0), scratch, WEIGHED)
    _encode(x, scratch, tables, out)


def _encode(x: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    for j in range(16):
        _take_weights(scratch, j)
        _fit(x, j, scratch, tables)
    largest = largest_scale(scratch, 16)
    scale = largest / 15.0
    nothing = largest == 0.0
    sum_xq = sum_q2 = lanes.full(0.0)
    for part in range(4):
        levels = lanes.full_int(0)
        for j in range(4 * part, 4 * part + 4):
            level = odd_level(1.0 / scale, lanes.load(scratch, SCALES + j), 7)
            levels = levels | level << 3 * (j - 4 * part)
            sum_xq, sum_q2 = _add_sums(x, j, scratch, lanes.to_float(level * 2 + 1), sum_xq, sum_q2)
            _put_points(scratch, tables, j, nothing, out)
        lanes.put16(out, LEVEL_SCALES + 2 * part, lanes.where(nothing, 0, levels))
    scale = lanes.where(sum_q2 > 0.0, sum_xq / sum_q2, scale)
    word = lanes.where(nothing, 0, to_half(scale * 1.1125))
    for part in range(4):
        nibble = (word >> 4 * part & 15) << 4
        lanes.put8(out, LEVEL_SCALES + 2 * part + 1, lanes.get8(out, LEVEL_SCALES + 2 * part + 1) | nibble)


def _take_weights(scratch: Lanes, j: int) -> None:
    for i in range(16):
        lanes.store(scratch, WEIGHTS + i, lanes.load(scratch, WEIGHED + 16 * j + i))


def _fit(x: Lanes, j: int, scratch: Lanes, tables: Any) -> None:
    """Scale, shifts and points of sub-block j."""
    rank(x, 16 * j, 16, scratch)
    for row in range(WX_A, FOUND):
        lanes.store(scratch, row, lanes.full(0.0))
    sort_into(x, 16 * j, 0, 8, scratch, WX_A, W_A)
    sort_into(x, 16 * j, 8, 16, scratch, WX_B, W_B)
    for row in range(WX_A, FOUND, 17):
        sum_prefixes(scratch, row, 16)
    best, scale, end, begin, shifts = _split(scratch)
    empty = (largest_magnitude(x, 16 * j, 16) < NOTHING) | (best == LOWEST)
    flip = scale < 0.0
    store_levels(scratch, 16, end, begin, flip)
    shifts = lanes.where(flip, 3.0 - shifts, shifts)
    scale = _refit(x, j, scratch, tables, lanes.fabs(scale), shifts)
    for k in range(2):
        lanes.store(scratch, FOUND + 2 * j + k, lanes.where(empty, 0.0, lanes.load(scratch, TRIAL + k)))
    lanes.store(scratch, SHIFTS + j, lanes.where(empty, 0.0, shifts))
    lanes.store(scratch, SCALES + j, lanes.where(empty, 0.0, scale))


def _split(scratch: Lanes) -> tuple[Lanes, Lanes, Lanes, Lanes, Lanes]:
    """Return the best split of 16 sorted values: score, scale, where level 0 ends and 2 begins, shifts 0 ++ … 3 --."""
    best, scale = lanes.full(LOWEST), lanes.full(0.0)
    end = begin = shifts = lanes.full(0.0)
    for i in range(17):
        for k in range(i, 17):
            a, b = _half_sums(scratch, WX_A, W_A, i, k), _half_sums(scratch, WX_B, W_B, i, k)
            for number in range(4):
                sum_xq = (a[0] if number < 2 else a[2]) + (b[0] if number % 2 == 0 else b[2])
                sum_q2 = (a[1] if number < 2 else a[3]) + (b[1] if number % 2 == 0 else b[3])
                better = (sum_q2 > 0.0) & (sum_xq * sum_xq > best * sum_q2)
                if lanes.any_lane(better):
                    scale = lanes.where(better, sum_xq / sum_q2, scale)
                    best = lanes.where(better, scale * sum_xq, best)
                    end, begin = lanes.where(better, lanes.full(i), end), lanes.where(better, lanes.full(k), begin)
                    shifts = lanes.where(better, lanes.full(number), shifts)
    return best, scale, end, begin, shifts


def _half_sums(scratch: Lanes, wx: int, w: int, i: int, k: int) -> tuple[Lanes, Lanes, Lanes, Lanes]:
    """Σ w q x and Σ w q² of one half for a shift of +⅛, then for -⅛.

    Neighbouring values differ by 1 and their squares by 0.75 and -1.25, or 1.25 and -0.75: both sums are linear in the
    prefix sums.
    """
    total, weight = lanes.load(scratch, wx + 16), lanes.load(scratch, w + 16)
    taken = lanes.load(scratch, wx + i) + lanes.load(scratch, wx + k)
    w_i, w_k = lanes.load(scratch, w + i), lanes.load(scratch, w + k)
    plus = total * 1.125 - taken, weight * 1.125 * 1.125 + w_i * 0.75 + w_k * -1.25
    minus = total * 0.875 - taken, weight * 0.875 * 0.875 + w_i * 1.25 + w_k * -0.75
    return plus[0], plus[1], minus[0], minus[1]


def _plus(shifts: Lanes, k: int) -> Lanes:
    """Mask of the lanes where the shift of group k of a sub-block is +⅛."""
    first, odd = shifts < 2.0, (lanes.to_int(shifts) & 1) == 1
    return first if k == 0 else ~odd


def _refit(x: Lanes, j: int, scratch: Lanes, tables: Any, scale: Lanes, shifts: Lanes) -> Lanes:
    """Choose both points of sub-block j; the scale, fitted again if a group was off the grid."""
    on_grid = lanes.full_int(0) == 0
    for k in range(2):
        on_grid = on_grid & choose_point(x, 16 * j, k, scratch, tables, scale, _plus(shifts, k))
    sum_xq = sum_q2 = lanes.full(0.0)
    for k in range(2):
        sum_xq, sum_q2 = group_sums(x, 16 * j, k, scratch, lanes.full(1.0), _plus(shifts, k), sum_xq, sum_q2)
    again = ~on_grid & (sum_xq > 0.0) & (sum_q2 > 0.0)
    return lanes.where(again, sum_xq / sum_q2, scale)


def _add_sums(x: Lanes, j: int, scratch: Lanes, factor: Lanes, sum_xq: Lanes, sum_q2: Lanes) -> tuple[Lanes, Lanes]:
    """Σ w q x and Σ w q² of sub-block j, for the scale of the whole block."""
    _take_weights(scratch, j)
    shifts = lanes.load(scratch, SHIFTS + j)
    for k in range(2):
        lanes.store(scratch, TRIAL + k, lanes.load(scratch, FOUND + 2 * j + k))
        sum_xq, sum_q2 = group_sums(x, 16 * j, k, scratch, factor, _plus(shifts, k), sum_xq, sum_q2)
    return sum_xq, sum_q2


def _put_points(scratch: Lanes, tables: Any, j: int, nothing: Lanes, out: Lanes) -> None:
    """Both points of sub-block j and their shifts; a block of zeros has none."""
    first, second = point_at(scratch, tables, FOUND + 2 * j), point_at(scratch, tables, FOUND + 2 * j + 1)
    lanes.put16(out, POINTS + 2 * j, first & 255 | (second & 255) << 8)
    shifts = lanes.to_int(lanes.load(scratch, SHIFTS + j))
    marks = (shifts & 1) << 7 | (shifts & 2) << 2
    lanes.put8(out, HIGH_BITS + j, first >> 8 | second >> 8 << 4 | lanes.where(nothing, 0, marks))


def decode_block(data: Lanes, tables: Any, y: Lanes) -> None:
    """Scale times shifted level."""
    word = lanes.full_int(0)
    for part in range(4):
        word = word | lanes.splat16(data, LEVEL_SCALES + 2 * part) >> 12 << 4 * part
    scale = from_half(word)
    for j in range(16):
        level = lanes.splat16(data, LEVEL_SCALES + j // 4 * 2) >> j % 4 * 3 & 7
        step = scale * lanes.to_float(level * 2 + 1)
        high = lanes.splat8(data, HIGH_BITS + j)
        for i in range(0, 16, lanes.WIDTH):
            number = lanes.numbers() + i
            half = number >> 3
            bits = high >> half * 4
            point = lanes.splat16(data, POINTS + 2 * j) >> half * 8 & 255 | (bits & 7) << 8
            magnitude = lanes.gather_group8(tables[MAGNITUDES], point, number) + 1.0
            lanes.write(y, 16 * j + i, step * shifted(magnitude, (bits & 8) == 0))
