"""Q3_K: 16 sub-blocks of 16 values, each with a 6-bit scale; each value is a 3-bit integer, offset by 4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.planes import level_word, pack_planes, plane
from gguf_mla.ggtypes.shared.rounding import clamp, nearest, signed_byte
from gguf_mla.ggtypes.shared.search import (
    NOTHING,
    extreme,
    fit_symmetric,
    mean_square,
    spread_weights,
    symmetric_level,
)
from gguf_mla.ggtypes.shared.signed_block import (
    EMPTY,
    LEVELS,
    SCALE_LEVELS,
    SCALES,
    SCRATCH,
    TOTALS,
    WEIGHTS,
    choose_levels,
    keep_fit,
    store_fitted_levels,
)
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

HIGH_BITS, PAIRS, LEVEL_SCALES, SCALE = 0, 32, 96, 108  # uint8[32], uint8[64], uint8[12], float16
TYPE = TensorType("Q3_K", id=11, block=256, bytes=32 + 64 + 12 + 2, scratch=SCRATCH, module_name=__name__)


def encode_weighted(x: Lanes, w: Lanes, scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Each sub-block takes the best of 19 weighted fits; the scales are fitted likewise."""
    square = mean_square(x, 0, 256, 2.0)
    for j in range(16):
        total = spread_weights(x, 16 * j, w, 16, square, scratch, WEIGHTS)
        lanes.store(scratch, TOTALS + j, total)
        found = fit_symmetric(x, 16 * j, scratch[WEIGHTS:], 16, 4)
        keep_fit(scratch, j, found[0], found[1], found[2])
    scale, inverse, empty = fit_symmetric(scratch, SCALES, scratch[TOTALS:], 16, 32)
    for j in range(16):
        level = symmetric_level(lanes.load(scratch, SCALES + j), inverse, 32) + 32.0
        lanes.store(scratch, SCALE_LEVELS + j, lanes.where(empty, 0.0, level))
    store_fitted_levels(x, scratch, 4)
    _finish(x, scratch, to_half(scale), out)


def _finish(x: Lanes, scratch: Lanes, scale: Lanes, out: Lanes) -> None:
    lanes.put16(out, SCALE, scale)
    _pack_scales(scratch, out)
    choose_levels(x, scratch, 4, from_half(scale))
    pack_planes(scratch, LEVELS, 32, 8, 1, 2, out, HIGH_BITS, 32)
    for half in range(2):
        pack_planes(scratch, LEVELS + 128 * half, 32, 4, 2, 0, out, PAIRS + 32 * half, 32)


def _pack_scales(scratch: Lanes, out: Lanes) -> None:
    """16 scale levels of 6 bits: low nibbles j and j + 8 share byte j, high bits j, j + 4, … share byte 8 + j.

    The levels left in scratch are offset by -32, as they multiply.
    """
    for j in range(8):
        low, high = (
            level_word(lanes.load(scratch, SCALE_LEVELS + j)),
            level_word(lanes.load(scratch, SCALE_LEVELS + j + 8)),
        )
        lanes.put8(out, LEVEL_SCALES + j, low & 15 | (high & 15) << 4)
    for j in range(4):
        byte = lanes.full_int(0)
        for k in range(4):
            byte = byte | (level_word(lanes.load(scratch, SCALE_LEVELS + j + 4 * k)) >> 4 & 3) << 2 * k
        lanes.put8(out, LEVEL_SCALES + 8 + j, byte)
    for j in range(16):
        lanes.store(scratch, SCALE_LEVELS + j, lanes.load(scratch, SCALE_LEVELS + j) - 32.0)


def encode(x: Lanes, scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Each sub-block's levels are improved one by one, errors weighed by x²; the extreme scale becomes level -32."""
    for j in range(0, 16, 4):  # four at a time: a move waits for the one before it in its own sub-block
        _fit(x, scratch, j)
    _, value = extreme(scratch, SCALES, 16)
    inverse = lanes.full(-32.0) / value
    zero = value == 0.0
    for j in range(16):
        level = clamp(signed_byte(nearest(inverse * lanes.load(scratch, SCALES + j))), -32, 31) + 32
        lanes.store(scratch, SCALE_LEVELS + j, lanes.to_float(lanes.where(zero, 0, level)))
    _finish(x, scratch, lanes.where(zero, 0, to_half(1.0 / inverse)), out)


def _fit(x: Lanes, scratch: Lanes, j: int) -> None:
    """Levels and scales of sub-blocks j … j + 3: by rounding, then rounds of moving levels (`make_q3_quants`).

    Five at most, and none after one that moves nothing: the next would be the same.
    """
    (a, a2), (b, b2) = _start(x, scratch, j), _start(x, scratch, j + 1)
    (c, c2), (d, d2) = _start(x, scratch, j + 2), _start(x, scratch, j + 3)
    for _ in range(5):
        moved = lanes.full(0.0)
        for i in range(16 * j, 16 * j + 16):
            best_a, best_b = _best(x, scratch, i, a, a2), _best(x, scratch, i + 16, b, b2)
            best_c, best_d = _best(x, scratch, i + 32, c, c2), _best(x, scratch, i + 48, d, d2)
            a, a2, moved = _move(x, scratch, i, best_a, a, a2, moved)
            b, b2, moved = _move(x, scratch, i + 16, best_b, b, b2, moved)
            c, c2, moved = _move(x, scratch, i + 32, best_c, c, c2, moved)
            d, d2, moved = _move(x, scratch, i + 48, best_d, d, d2, moved)
        if not lanes.any_lane(moved > 0.0):
            break
    _store_fit(scratch, j, a, a2)
    _store_fit(scratch, j + 1, b, b2)
    _store_fit(scratch, j + 2, c, c2)
    _store_fit(scratch, j + 3, d, d2)


def _start(x: Lanes, scratch: Lanes, j: int) -> tuple[Lanes, Lanes]:
    """Levels of sub-block j by rounding, -4 … 3; Σ w x l and Σ w l² with w = x²."""
    largest, value = extreme(x, 16 * j, 16)
    empty = largest < NOTHING
    inverse = lanes.full(-4.0) / lanes.where(empty, 1.0, value)
    sum_xl = sum_l2 = lanes.full(0.0)
    for i in range(16 * j, 16 * j + 16):
        value = lanes.load(x, i)
        level, weight = symmetric_level(value, inverse, 4), value * value
        lanes.store(scratch, LEVELS + i, level)
        sum_xl = sum_xl + weight * value * level
        sum_l2 = sum_l2 + weight * level * level
    lanes.store(scratch, EMPTY + j, lanes.where(empty, 1.0, lanes.full(0.0)))
    return sum_xl, sum_l2


def _best(x: Lanes, scratch: Lanes, i: int, sum_xl: Lanes, sum_l2: Lanes) -> Lanes:
    """F: the optimum of level i given the others."""
    value, level = lanes.load(x, i), lanes.load(scratch, LEVELS + i)
    weight = value * value
    rest_xl = sum_xl - weight * value * level
    rest_l2 = sum_l2 - weight * level * level
    return lanes.to_float(clamp(nearest(value * rest_l2 / rest_xl), -4, 3))


def _move(
    x: Lanes, scratch: Lanes, i: int, moved: Lanes, sum_xl: Lanes, sum_l2: Lanes, moved_before: Lanes
) -> tuple[Lanes, Lanes, Lanes]:
    """Move level i to its optimum given the others, if that raises the explained square.

    Returns the sums after that, and 1 where this or an earlier level has moved.
    """
    value, level = lanes.load(x, i), lanes.load(scratch, LEVELS + i)
    weight = value * value
    rest_xl = sum_xl - weight * value * level
    rest_l2 = sum_l2 - weight * level * level
    new_xl = rest_xl + weight * value * moved
    new_l2 = rest_l2 + weight * moved * moved
    better = (rest_xl > 0.0) & (moved != level) & (new_l2 > 0.0)
    better = better & (new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2)
    lanes.store(scratch, LEVELS + i, lanes.where(better, moved, level))
    moved_now = lanes.where(better, 1.0, moved_before)
    return lanes.where(better, new_xl, sum_xl), lanes.where(better, new_l2, sum_l2), moved_now


def _store_fit(scratch: Lanes, j: int, sum_xl: Lanes, sum_l2: Lanes) -> None:
    """Scale of sub-block j; its levels as they are stored, 0 … 7, or 0 if it is empty."""
    empty = lanes.load(scratch, EMPTY + j) != 0.0
    lanes.store(scratch, SCALES + j, lanes.where(empty | ~(sum_l2 > 0.0), 0.0, sum_xl / sum_l2))
    for i in range(16 * j, 16 * j + 16):
        lanes.store(scratch, LEVELS + i, lanes.where(empty, 0.0, lanes.load(scratch, LEVELS + i) + 4.0))


def decode_block(data: Lanes, _tables: Any, y: Lanes) -> None:
    """Scale times sub-block scale times integer."""
    scale = from_half(lanes.splat16(data, SCALE))
    for j in range(16):
        low = lanes.splat8(data, LEVEL_SCALES + j % 8) >> j // 8 * 4 & 15
        high = lanes.splat8(data, LEVEL_SCALES + 8 + j % 4) >> j // 4 * 2 & 3
        step = scale * lanes.to_float((low | high << 4) - 32)
        half, run, column = j // 8, j // 2 % 4, j % 2 * 16
        for i in range(column, column + 16, lanes.WIDTH):
            level = plane(data, PAIRS + 32 * half + i, run, 2) | plane(data, HIGH_BITS + i, j // 2, 1) << 2
            lanes.write(y, 128 * half + 32 * run + i, step * lanes.to_float(level - 4))
