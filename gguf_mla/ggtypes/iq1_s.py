"""IQ1_S: 8 sub-blocks of 32 values, each with a 3-bit scale and a common shift; groups of 8 are one of 2048 points."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.grid import MAGNITUDES, SCALES, TRIAL, WEIGHTS, WORDS, largest_scale, odd_level, point_at
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.search import mean_square, spread_weights
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

SCALE, POINTS, HIGH_BITS = 0, 2, 34  # float16; uint8[32]; per sub-block uint16: 4 times 3 bits of point, scale, shift
SUM_WX, SUM_W = SUMS, SUMS + 33  # rows of scratch
NOTHING = 1e-12
TYPE = TensorType(
    "IQ1_S", id=19, block=256, bytes=2 + 32 + 16, needs_importance=True, scratch=SUMS + 66, module_name=__name__
)


def tables() -> tuple[Any, ...]:
    """Return the grid and its neighbours."""
    found: tuple[Any, ...] = import_module("gguf_mla.ggtypes.shared.grid_tables").grid_tables("IQ1_S", 3, rounded=False)
    return found


def encode_weighted(x: Lanes, w: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Each sub-block is split optimally, then moved to grid points and refitted; the largest scale becomes level 7."""
    square = mean_square(x, 0, 256, 2.0)
    for j in range(8):
        spread_weights(x, 32 * j, w, 32, square, scratch, WEIGHTS)
        _fit(x, j, scratch, tables, out)
    largest = largest_scale(scratch, 8)
    scale = largest / 15.0
    nothing = largest == 0.0
    lanes.put16(out, SCALE, lanes.where(nothing, 0, to_half(scale * 1.125)))
    for j in range(8):
        word = lanes.to_int(lanes.load(scratch, WORDS + j))
        level = odd_level(1.0 / scale, lanes.load(scratch, SCALES + j), 7) | (word >> 12 & 8)
        lanes.put16(out, HIGH_BITS + 2 * j, word & 0xFFF | lanes.where(nothing, 0, level) << 12)


def _fit(x: Lanes, j: int, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Scale, shift and points of sub-block j; row WORDS + j: high bits of the points, bit 15 for a shift of -⅛."""
    rank(x, 32 * j, 32, scratch)
    sort_into(x, 32 * j, 0, 32, scratch, SUM_WX, SUM_W)
    sum_prefixes(scratch, SUM_WX, 32)
    sum_prefixes(scratch, SUM_W, 32)
    best, scale, end, begin, shift = _split(scratch)
    empty = (largest_magnitude(x, 32 * j, 32) < NOTHING) | (best == LOWEST)
    flip = scale < 0.0
    store_levels(scratch, 32, end, begin, flip)
    plus = (shift > 0.0) ^ flip
    scale = _refit(x, j, scratch, tables, lanes.fabs(scale), plus)
    word = lanes.where(plus, 0, lanes.full_int(1 << 15))
    for k in range(4):
        point = lanes.where(empty, 0, point_at(scratch, tables, TRIAL + k))
        lanes.put8(out, POINTS + 4 * j + k, point)
        word = word | point >> 8 << 3 * k
    lanes.store(scratch, WORDS + j, lanes.to_float(lanes.where(empty, 0, word)))
    lanes.store(scratch, SCALES + j, lanes.where(empty, 0.0, scale))


def _split(scratch: Lanes) -> tuple[Lanes, Lanes, Lanes, Lanes, Lanes]:
    """Return the best split of 32 sorted values: score, scale, where level 0 ends and 2 begins, shift (±1)."""
    best, scale = lanes.full(LOWEST), lanes.full(0.0)
    end = begin = shift = lanes.full(0.0)
    for i in range(33):
        for k in range(i, 33):
            for sign in range(1, -2, -2):
                sum_xq, sum_q2 = _split_sums(scratch, i, k, 0.125 * sign)
                better = (sum_q2 > 0.0) & (sum_xq * sum_xq > best * sum_q2)
                if lanes.any_lane(better):
                    scale = lanes.where(better, sum_xq / sum_q2, scale)
                    best = lanes.where(better, scale * sum_xq, best)
                    end, begin = lanes.where(better, lanes.full(i), end), lanes.where(better, lanes.full(k), begin)
                    shift = lanes.where(better, lanes.full(sign), shift)
    return best, scale, end, begin, shift


def _split_sums(scratch: Lanes, i: int, k: int, delta: float) -> tuple[Lanes, Lanes]:
    """Σ w q x and Σ w q² for level 0 up to place i, level 2 from place k on."""
    low, middle, high = delta - 1.0, delta, delta + 1.0
    wx_i, wx_k, wx = lanes.load(scratch, SUM_WX + i), lanes.load(scratch, SUM_WX + k), lanes.load(scratch, SUM_WX + 32)
    w_i, w_k, w = lanes.load(scratch, SUM_W + i), lanes.load(scratch, SUM_W + k), lanes.load(scratch, SUM_W + 32)
    sum_xq = wx_i * low + (wx_k - wx_i) * middle + (wx - wx_k) * high
    return sum_xq, w_i * low * low + (w_k - w_i) * middle * middle + (w - w_k) * high * high


def _refit(x: Lanes, j: int, scratch: Lanes, tables: Any, scale: Lanes, plus: Lanes) -> Lanes:
    """Choose the points of sub-block j; the scale, fitted again if a group was off the grid."""
    on_grid = lanes.full_int(0) == 0
    for k in range(4):
        on_grid = on_grid & choose_point(x, 32 * j, k, scratch, tables, scale, plus)
    sum_xq = sum_q2 = lanes.full(0.0)
    for k in range(4):
        sum_xq, sum_q2 = group_sums(x, 32 * j, k, scratch, lanes.full(1.0), plus, sum_xq, sum_q2)
    again = ~on_grid & (sum_xq > 0.0) & (sum_q2 > 0.0)
    return lanes.where(again, sum_xq / sum_q2, scale)


def decode_block(data: Lanes, tables: Any, y: Lanes) -> None:
    """Scale times shifted level."""
    scale = from_half(lanes.splat16(data, SCALE))
    for j in range(8):
        word = lanes.splat16(data, HIGH_BITS + 2 * j)
        step = scale * lanes.to_float((word >> 12 & 7) * 2 + 1)
        plus = word >> 15 == 0
        for i in range(0, 32, lanes.WIDTH):
            number = lanes.numbers() + i
            group = number >> 3
            point = lanes.splat32(data, POINTS + 4 * j) >> group * 8 & 255 | (word >> group * 3 & 7) << 8
            level = lanes.gather_group8(tables[MAGNITUDES], point, number) + 1.0
            lanes.write(y, 32 * j + i, step * shifted(level, plus))
