"""What the IQ2 and IQ3 types share: groups of 8 or 4 levels that must form a point of a fixed grid.

Magnitudes are rounded to odd multiples of half a step, 2 l + 1; a group whose levels are not a grid point takes the
best of that point's neighbours. ggml's lists of neighbours (`iq2xs_init_impl`, `iq3xs_init_impl`) are rebuilt from the
grids in the `gguf` package: the grid points at the smallest two or three distances, nearest first, then by number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.rounding import clamp, nearest
from gguf_mla.lanes.binding import unbound, variant

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

# The tables `grid_tables` makes, by number.
POINT_OF, LISTS, NEIGHBOURS, MAGNITUDES = range(4)

# Rows of scratch: of one sub-block the weights, their roots, magnitudes, levels, weights times magnitudes; two tables
# of candidates' errors; the numbers of its groups and whether they are the rounded levels themselves; what the whole
# block collects; the scale that is tried.
WEIGHTS, ROOTS, VALUES, LEVELS, PRODUCTS, TABLE = range(0, 192, 32)
TRIAL, TRIAL_ON, CHOSEN, CHOSEN_ON = range(192, 224, 8)
SCALES, WORDS, TRIED = 224, 240, 248
SCRATCH = TRIED + 32
LARGEST = 3.4028234663852886e38  # float32's
SURELY = 0.4999  # how far a value may be from the level it is rounded to, that no rounding error makes that another's

# What `variant` gives: values per group, bits of a level in its number and levels per value, over which kernels unroll;
# how a group's point is chosen; which groups are chosen again; whether (1.0 or 0.0) a sub-block where no candidate
# explains anything counts as on the grid.
GROUP, BITS, TOP, choose_point = map(unbound, ("GROUP", "BITS", "TOP", "choose_point"))
redo, BEGIN_ON_GRID = map(unbound, ("redo", "BEGIN_ON_GRID"))


def redo_off_grid(on_grid: Lanes, all_on_grid: Lanes) -> Lanes:
    """Return groups to choose again by the fitted scale: those that were off the grid."""
    return ~(on_grid | all_on_grid)


def redo_all(on_grid: Lanes, all_on_grid: Lanes) -> Lanes:
    """Return groups to choose again by the fitted scale: all, if one was off the grid."""
    return ~(on_grid & all_on_grid)


def redo_always(on_grid: Lanes, all_on_grid: Lanes) -> Lanes:
    """Return groups to choose again by the fitted scale: all."""
    return on_grid | all_on_grid | ~on_grid


def rounded_number(scratch: Lanes, at: int, inverse: Lanes) -> tuple[Lanes, Lanes]:
    """I: the rounded levels of a group as a number, the first in its lowest bits; M: whether all are surely nearest."""
    number, farthest = lanes.full_int(0), lanes.full(0.0)
    for i in range(GROUP):
        place = (inverse * lanes.load(scratch, VALUES + at + i) - 1.0) * 0.5
        level = clamp(nearest(place), 0, TOP - 1)
        number = number | level << BITS * i
        place = lanes.where(place < TOP - 1.0, place, TOP - 1.0)
        off = lanes.fabs(lanes.where(place > 0.0, place, 0.0) - lanes.to_float(level))
        farthest = lanes.where(off > farthest, off, farthest)
    return number, farthest < SURELY


def tabulate_errors(scratch: Lanes, at: int, scale: Lanes) -> None:
    """Weighted squared error of every level of every value in a group of 8: 4 rows per value, from TABLE on."""
    for i in range(8):
        value, weight = lanes.load(scratch, VALUES + at + i), lanes.load(scratch, ROOTS + at + i)
        for level in range(TOP):
            off = scale * (2.0 * level + 1.0) - value
            lanes.store(scratch, TABLE + 4 * i + level, weight * off * off)
    lanes.transpose_table(scratch, TABLE)
    lanes.transpose_table(scratch, TABLE + 16)


def best_of_eight(scratch: Lanes, lane: int, neighbours: Lanes, start: int, stop: int) -> int:
    """Position, in start … stop, of the neighbour with the least error for one lane; here lanes are neighbours."""
    best, at = lanes.full(LARGEST), lanes.full_int(start)
    for k in range(start, stop, lanes.WIDTH):
        number = lanes.run32(neighbours, k)
        error = lanes.pick4(scratch, TABLE, lane, number)
        for i in range(1, 8):
            error = error + lanes.pick4(scratch, TABLE + 4 * i, lane, number >> 2 * i)
        better = error < best
        best, at = lanes.where(better, error, best), lanes.where(better, lanes.numbers() + k, at)
    if stop - start <= lanes.WIDTH:
        return start + int(lanes.least_lane(best))
    return int(lanes.first_least(best, at))


def choose_neighbours(scratch: Lanes, tables: tuple[Lanes, ...], k: int) -> None:
    """Replace each list of neighbours in row TRIAL + k by the best of them, by the errors in TABLE."""
    for lane in range(lanes.WIDTH):
        place = -int(lanes.item(scratch, TRIAL + k, lane))
        if place > 0:
            start, stop = tables[LISTS][place], tables[LISTS][place + 1]
            position = best_of_eight(scratch, lane, tables[NEIGHBOURS], start, stop)
            lanes.set_item(scratch, TRIAL + k, lane, float(tables[NEIGHBOURS][position]))


def _choose_eight(scratch: Lanes, tables: tuple[Lanes, ...], k: int, inverse: Lanes, scale: Lanes) -> None:
    """Rows TRIAL + k, TRIAL_ON + k: the grid point for group k by one scale, and whether rounding hit it."""
    number, surely = rounded_number(scratch, 8 * k, inverse)
    point = lanes.lookup(tables[POINT_OF], number)
    off_grid = point < 0
    found = lanes.where(off_grid, lanes.where(surely, point, point - 2), number)
    lanes.store(scratch, TRIAL + k, lanes.to_float(found))
    lanes.store(scratch, TRIAL_ON + k, lanes.where(off_grid, 0.0, lanes.full(1.0)))
    if lanes.any_lane(off_grid):
        tabulate_errors(scratch, 8 * k, scale)
        choose_neighbours(scratch, tables, k)


def errors_of_four(scratch: Lanes, at: int, lane: int, number: Lanes) -> Lanes:
    """Weighted squared error of neighbours for a pair of lanes, by the scale in row TRIED."""
    scale, total = lanes.pair_item(scratch, TRIED, lane), lanes.full(0.0)
    for i in range(4):
        value, weight = lanes.pair_item(scratch, VALUES + at + i, lane), lanes.pair_item(scratch, ROOTS + at + i, lane)
        off = scale * lanes.odd8(number >> 3 * i) - value
        total = total + weight * off * off
    return total


def choose_pair(scratch: Lanes, tables: tuple[Lanes, ...], k: int, lane: int) -> None:
    """Replace the lists of neighbours that two lanes have in row TRIAL + k by the best of them."""
    neighbours, last = tables[NEIGHBOURS], -lanes.HALF
    a, b = int(lanes.item(scratch, TRIAL + k, lane)), int(lanes.item(scratch, TRIAL + k, lane + 1))
    a, a_stop, b, b_stop = tables[LISTS][a], tables[LISTS][a + 1], tables[LISTS][b], tables[LISTS][b + 1]
    longest = a_stop - a if a_stop - a > b_stop - b else b_stop - b  # noqa: FURB136 - as below
    best, at = lanes.full(LARGEST), lanes.full_int(0)
    for offset in range(0, longest, lanes.HALF):
        a_at = a + offset if a + offset < a_stop else a_stop - 1 & last  # no `min`: numba's is not for CUDA
        b_at = b + offset if b + offset < b_stop else b_stop - 1 & last
        number = lanes.pair_run32(neighbours, a_at, b_at)
        error = errors_of_four(scratch, 4 * k, lane, number)
        better = error < best
        best, at = (
            lanes.where(better, error, best),
            lanes.where(better, (lanes.numbers() & lanes.HALF - 1) + offset, at),
        )
    first, second = lanes.pair_least(best) if longest <= lanes.HALF else lanes.pair_first_least(best, at)
    lanes.set_item(scratch, TRIAL + k, lane, float(neighbours[a + first]))
    lanes.set_item(scratch, TRIAL + k, lane + 1, float(neighbours[b + second]))


def _choose_four(scratch: Lanes, tables: tuple[Lanes, ...], k: int, inverse: Lanes, scale: Lanes) -> None:
    """Rows TRIAL + k, TRIAL_ON + k: the grid point for group k by one scale, and whether rounding hit it."""
    number, surely = rounded_number(scratch, 4 * k, inverse)
    lanes.store(scratch, TRIED, scale)
    lanes.store(scratch, TRIAL + k, lanes.to_float(number * 4 + lanes.where(surely, 4, lanes.full_int(6))))
    for lane in range(0, lanes.WIDTH, 2):
        choose_pair(scratch, tables, k, lane)
    hit = lanes.load(scratch, TRIAL + k) == lanes.to_float(number)
    lanes.store(scratch, TRIAL_ON + k, lanes.where(hit, 1.0, lanes.full(0.0)))


def point_sums(scratch: Lanes, row: int, size: int) -> tuple[Lanes, Lanes]:
    """Σ w x q and Σ w q² of a sub-block whose groups have the numbers in rows row …; q = 2 l + 1."""
    sum_xq = sum_q2 = lanes.full(0.0)
    for k in range(size // GROUP):
        number = lanes.to_int(lanes.load(scratch, row + k))
        for i in range(GROUP):
            level = number >> BITS * i & (1 << BITS) - 1
            q = lanes.to_float(level + level + 1)
            sum_xq = sum_xq + lanes.load(scratch, PRODUCTS + GROUP * k + i) * q
            sum_q2 = sum_q2 + lanes.load(scratch, WEIGHTS + GROUP * k + i) * q * q
    return sum_xq, sum_q2


def try_scale(
    scratch: Lanes, tables: tuple[Lanes, ...], size: int, inverse: Lanes, scale: Lanes
) -> tuple[Lanes, Lanes]:
    """Points of a whole sub-block by one scale, in rows TRIAL …; their sums."""
    for k in range(size // GROUP):
        choose_point(scratch, tables, k, inverse, scale)
    return point_sums(scratch, TRIAL, size)


def keep_trial(scratch: Lanes, groups: int, better: Lanes) -> None:
    """Take the trial's points where it was better."""
    for k in range(groups):
        for kept, tried in ((CHOSEN, TRIAL), (CHOSEN_ON, TRIAL_ON)):
            value = lanes.where(better, lanes.load(scratch, tried + k), lanes.load(scratch, kept + k))
            lanes.store(scratch, kept + k, value)


def _fit_grid(
    scratch: Lanes, tables: tuple[Lanes, ...], size: int, steps: int, step: float, reach: Lanes, scale: Lanes
) -> Lanes:
    """Scale of a sub-block, the best of 2 steps + 1 that map `reach` to about 2 TOP - 1, then refitted.

    `scale` stands if no candidate explains anything. The points' numbers end up in rows CHOSEN ….
    """
    groups = size // GROUP
    for k in range(groups):
        lanes.store(scratch, CHOSEN + k, lanes.full(0.0))
        lanes.store(scratch, CHOSEN_ON + k, lanes.full(BEGIN_ON_GRID))
    for i in range(size):
        lanes.store(scratch, PRODUCTS + i, lanes.load(scratch, WEIGHTS + i) * lanes.load(scratch, VALUES + i))
    best = lanes.full(0.0)
    for index in range(-steps, steps + 1):
        inverse = (lanes.full(index) * step + (2.0 * TOP - 1.0)) / reach
        sum_xq, sum_q2 = try_scale(scratch, tables, size, inverse, 1.0 / inverse)
        better = (sum_q2 > 0.0) & (sum_xq * sum_xq > best * sum_q2)
        scale = lanes.where(better, sum_xq / sum_q2, scale)
        best = lanes.where(better, scale * sum_xq, best)
        keep_trial(scratch, groups, better)
    return refit(scratch, tables, size, scale)


def refit(scratch: Lanes, tables: tuple[Lanes, ...], size: int, scale: Lanes) -> Lanes:
    """Choose points again by the fitted scale, where `redo` says so, and fit the scale to them."""
    all_on_grid = lanes.full(0.0) == 0.0
    for k in range(size // GROUP):
        all_on_grid = all_on_grid & (lanes.load(scratch, CHOSEN_ON + k) != 0.0)
    try_scale(scratch, tables, size, 1.0 / scale, scale)
    positive = scale > 0.0
    changed = positive & ~positive
    for k in range(size // GROUP):
        again = positive & redo(lanes.load(scratch, CHOSEN_ON + k) != 0.0, all_on_grid)
        changed = changed | again
        point = lanes.where(again, lanes.load(scratch, TRIAL + k), lanes.load(scratch, CHOSEN + k))
        lanes.store(scratch, CHOSEN + k, point)
    sum_xq, sum_q2 = point_sums(scratch, CHOSEN, size)
    return lanes.where(changed & (sum_q2 > 0.0), sum_xq / sum_q2, scale)


choose_eight = variant(_choose_eight, GROUP=8, BITS=2, TOP=3)
choose_four = variant(_choose_four, GROUP=4, BITS=3, TOP=8)
fit_grid = variant(_fit_grid, GROUP=8, BITS=2, TOP=3, choose_point=choose_eight, redo=redo_off_grid, BEGIN_ON_GRID=1.0)
fit_iq2_xxs = variant(_fit_grid, GROUP=8, BITS=2, TOP=3, choose_point=choose_eight, redo=redo_always, BEGIN_ON_GRID=1.0)
fit_iq3_xxs = variant(
    _fit_grid, GROUP=4, BITS=3, TOP=8, choose_point=choose_four, redo=redo_off_grid, BEGIN_ON_GRID=1.0
)
fit_iq3_s = variant(_fit_grid, GROUP=4, BITS=3, TOP=8, choose_point=choose_four, redo=redo_all, BEGIN_ON_GRID=0.0)


def store_magnitudes(x: Lanes, at: int, size: int, scratch: Lanes) -> Lanes:
    """Rows VALUES … of one sub-block: magnitudes; rows ROOTS …: roots of the weights. Returns the largest magnitude."""
    largest = lanes.fabs(lanes.load(x, at))
    for i in range(size):
        magnitude = lanes.fabs(lanes.load(x, at + i))
        largest = lanes.where(magnitude > largest, magnitude, largest)
        lanes.store(scratch, VALUES + i, magnitude)
        lanes.store(scratch, ROOTS + i, lanes.sqrt(lanes.load(scratch, WEIGHTS + i)))
    return largest


def sign_byte(x: Lanes, at: int) -> Lanes:
    """I: one bit per negative value of eight."""
    signs = lanes.full_int(0)
    for i in range(8):
        signs = signs | lanes.where(lanes.load(x, at + i) >= 0.0, 0, lanes.full_int(1 << i))
    return signs


def even_signs(x: Lanes, at: int, scratch: Lanes, k: int) -> Lanes:
    """I: signs of eight values as 7 bits, for types that store an even number of minuses.

    If it is odd, the value whose sign matters least changes sides: its magnitude becomes negative.
    """
    signs, flips = sign_byte(x, at), lanes.full_int(0)
    least, which = lanes.full(LARGEST), lanes.full(0.0)
    for i in range(8):
        value = lanes.load(x, at + i)
        cost = lanes.load(scratch, WEIGHTS + 8 * k + i) * value * value
        smaller = cost < least
        if i == 0:
            smaller = smaller | ~smaller
        least, which = lanes.where(smaller, cost, least), lanes.where(smaller, 1.0 * i, which)
        flips = flips ^ signs >> i
    for i in range(8):
        chosen = (which == 1.0 * i) & ((flips & 1) == 1)
        magnitude = lanes.load(scratch, VALUES + 8 * k + i)
        lanes.store(scratch, VALUES + 8 * k + i, lanes.where(chosen, -magnitude, magnitude))
        signs = lanes.where(chosen, signs ^ 1 << i, signs)
    return signs & 127


def largest_value(scratch: Lanes, size: int) -> Lanes:
    """Largest of the signed magnitudes of one sub-block."""
    largest = lanes.load(scratch, VALUES)
    for i in range(1, size):
        value = lanes.load(scratch, VALUES + i)
        largest = lanes.where(largest > value, largest, value)
    return largest


def largest_scale(scratch: Lanes, count: int) -> Lanes:
    """Largest of the sub-blocks' scales."""
    largest = lanes.full(0.0)
    for j in range(count):
        scale = lanes.load(scratch, SCALES + j)
        largest = lanes.where(largest > scale, largest, scale)
    return largest


def odd_level(inverse: Lanes, value: Lanes, top: int) -> Lanes:
    """I: the level l ≤ top whose 2 l + 1 is nearest to value · inverse."""
    return clamp(nearest((inverse * value - 1.0) * 0.5), 0, top)


def point_at(scratch: Lanes, tables: tuple[Lanes, ...], row: int) -> Lanes:
    """I: the grid point whose number a row holds."""
    return lanes.lookup(tables[POINT_OF], lanes.to_int(lanes.load(scratch, row)))


def chosen_point(scratch: Lanes, tables: tuple[Lanes, ...], k: int, empty: Lanes) -> Lanes:
    """I: the grid point of group k; 0 in an empty sub-block."""
    return lanes.where(empty, 0, point_at(scratch, tables, CHOSEN + k))


def sign_of(signs: Lanes, bit: Lanes) -> Lanes:
    """F: -1 or 1, as bit `bit` of signs says."""
    return lanes.to_float(1 - ((signs >> bit & 1) << 1))


def with_parity(signs: Lanes) -> Lanes:
    """I: 7 stored sign bits and the eighth, which makes the number of minuses even."""
    folded = signs ^ signs >> 4
    folded = folded ^ folded >> 2
    return signs | ((folded ^ folded >> 1) & 1) << 7
