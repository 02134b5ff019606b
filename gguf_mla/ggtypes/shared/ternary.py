"""What IQ1_S and IQ1_M share: values -1, 0, 1 plus or minus an eighth, split optimally, in groups that are grid points.

With three levels the best weighted fit can be found exactly: sort the values, and try every pair of places where level
0 ends and level 2 begins. Sums over sorted prefixes make each try cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.grid import POINT_OF, SCRATCH, TABLE, TRIAL, WEIGHTS, choose_neighbours

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

# Rows of scratch, beside those of `ggtypes.shared.grid`: each value's place in sorted order; prefix sums.
PLACES = SCRATCH
SUMS = PLACES + 32
DELTA = 0.125
LOWEST = -3.4028234663852886e38  # -FLT_MAX


def largest_magnitude(x: Lanes, at: int, count: int) -> Lanes:
    """Largest magnitude of a sub-block."""
    largest = lanes.fabs(lanes.load(x, at))
    for i in range(1, count):
        magnitude = lanes.fabs(lanes.load(x, at + i))
        largest = lanes.where(largest > magnitude, largest, magnitude)
    return largest


def rank(x: Lanes, at: int, count: int, scratch: Lanes) -> None:
    """Rows PLACES …: how many values sort before each one; equal values keep their order."""
    for i in range(count):
        lanes.store(scratch, PLACES + i, lanes.full(0.0))
    for i in range(1, count):
        value, place = lanes.load(x, at + i), lanes.load(scratch, PLACES + i)
        for j in range(i):
            first = lanes.load(x, at + j) <= value
            place = place + lanes.where(first, 1.0, lanes.full(0.0))
            other = lanes.load(scratch, PLACES + j)
            lanes.store(scratch, PLACES + j, other + lanes.where(first, 0.0, lanes.full(1.0)))
        lanes.store(scratch, PLACES + i, place)


def sum_prefixes(scratch: Lanes, row: int, count: int) -> None:
    """Turn rows row + 1 … row + count into running sums, with 0 in row `row`."""
    total = lanes.full(0.0)
    lanes.store(scratch, row, total)
    for j in range(1, count + 1):
        total = total + lanes.load(scratch, row + j)
        lanes.store(scratch, row + j, total)


def sort_into(x: Lanes, at: int, first: int, stop: int, scratch: Lanes, sums_wx: int, sums_w: int) -> None:
    """Put w x and w of values first … stop of a sub-block where they belong in sorted order, one row further on."""
    for i in range(first, stop):
        row = lanes.to_int(lanes.load(scratch, PLACES + i)) + 1
        weight = lanes.load(scratch, WEIGHTS + i)
        lanes.scatter(scratch, row + sums_wx, weight * lanes.load(x, at + i))
        lanes.scatter(scratch, row + sums_w, weight)


def store_levels(scratch: Lanes, count: int, end: Lanes, begin: Lanes, flip: Lanes) -> None:
    """Replace rows PLACES … by levels 0, 1, 2, F: level 0 up to place `end`, 2 from `begin` on; flipped where asked."""
    for i in range(count):
        place = lanes.load(scratch, PLACES + i)
        level = lanes.where(place < end, 0.0, lanes.where(place < begin, 1.0, lanes.full(2.0)))
        lanes.store(scratch, PLACES + i, lanes.where(flip, 2.0 - level, level))


def shifted(level: Lanes, plus: Lanes) -> Lanes:
    """F: what an F level stands for: -1, 0, 1, shifted by +⅛ where `plus` holds, else by -⅛."""
    return level - 1.0 + lanes.where(plus, DELTA, lanes.full(-DELTA))


def choose_point(
    x: Lanes, at: int, k: int, scratch: Lanes, tables: tuple[Lanes, ...], scale: Lanes, plus: Lanes
) -> Lanes:
    """Row TRIAL + k: the number of group k's levels, or of the best neighbour; the mask of those on the grid."""
    number = lanes.full_int(0)
    for i in range(8):
        number = number | lanes.to_int(lanes.load(scratch, PLACES + 8 * k + i)) << 2 * i
    point = lanes.lookup(tables[POINT_OF], number)
    lanes.store(scratch, TRIAL + k, lanes.to_float(lanes.where(point < 0, point, number)))
    if lanes.any_lane(point < 0):
        for i in range(8):
            value, weight = lanes.load(x, at + 8 * k + i), lanes.load(scratch, WEIGHTS + 8 * k + i)
            for level in range(3):
                off = scale * shifted(lanes.full(level), plus) - value
                lanes.store(scratch, TABLE + 4 * i + level, weight * off * off)
        lanes.transpose_table(scratch, TABLE)
        lanes.transpose_table(scratch, TABLE + 16)
        choose_neighbours(scratch, tables, k)
    return point >= 0


def group_sums(
    x: Lanes, at: int, k: int, scratch: Lanes, factor: Lanes, plus: Lanes, sum_xq: Lanes, sum_q2: Lanes
) -> tuple[Lanes, Lanes]:
    """Σ w q x and Σ w q² of group k added on, q being `factor` times what its point's levels stand for."""
    number = lanes.to_int(lanes.load(scratch, TRIAL + k))
    for i in range(8):
        weight = lanes.load(scratch, WEIGHTS + 8 * k + i)
        q = shifted(lanes.to_float(number >> 2 * i & 3), plus) * factor
        weighted = weight * q
        sum_xq = sum_xq + weighted * lanes.load(x, at + 8 * k + i)
        sum_q2 = sum_q2 + weighted * q
    return sum_xq, sum_q2
