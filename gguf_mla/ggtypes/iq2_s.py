"""IQ2_S: 16 sub-blocks of 16 values, each with a 4-bit scale; groups of 8 are one of 1024 points, with 8 sign bits."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.grid import (
    MAGNITUDES,
    SCALES,
    SCRATCH,
    WEIGHTS,
    chosen_point,
    fit_grid,
    largest_scale,
    odd_level,
    sign_byte,
    sign_of,
    store_magnitudes,
)
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.search import mean_square, spread_weights
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

# float16; uint8[32] low bits of the points; uint8[32] signs; uint8[8] high bits of the points; uint8[8]
SCALE, POINTS, SIGNS, HIGH_BITS, LEVEL_SCALES = 0, 2, 34, 66, 74
ROOM = SCRATCH  # rows of scratch: high bits of the points of one sub-block
TYPE = TensorType("IQ2_S", id=22, block=256, bytes=2 + 64 + 8 + 8, scratch=SCRATCH + 16, module_name=__name__)
NOTHING = 1e-8


def tables() -> tuple[Any, ...]:
    """Return the grid and its neighbours."""
    found: tuple[Any, ...] = import_module("gguf_mla.ggtypes.shared.grid_tables").grid_tables("IQ2_S", 1)
    return found


def encode(x: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Each sub-block's scale is the best of 19, errors weighed by x² plus a quarter of the block's mean of it."""
    square = mean_square(x, 0, 256, 2.0) * 0.25
    for j in range(16):
        for i in range(16):
            value = lanes.load(x, 16 * j + i)
            lanes.store(scratch, WEIGHTS + i, square + value * value)
        _fit(x, j, scratch, tables, out)
    _finish(scratch, out)


def encode_weighted(x: Lanes, w: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Each sub-block's scale is the best of 19 by weighted squared error, refitted; the largest becomes level 15."""
    square = mean_square(x, 0, 256, 2.0)
    for j in range(16):
        spread_weights(x, 16 * j, w, 16, square, scratch, WEIGHTS)
        _fit(x, j, scratch, tables, out)
    _finish(scratch, out)


def _fit(x: Lanes, j: int, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Scale, points and signs of sub-block j."""
    largest = store_magnitudes(x, 16 * j, 16, scratch)
    empty = largest < NOTHING
    scale = fit_grid(scratch, tables, 16, 9, 0.1, lanes.where(empty, 1.0, largest), largest / 5.0)
    signs = sign_byte(x, 16 * j) | sign_byte(x, 16 * j + 8) << 8
    signs = lanes.where(scale < 0.0, signs ^ 0xFFFF, signs)
    lanes.put16(out, SIGNS + 2 * j, lanes.where(empty, 0, signs))
    first, second = chosen_point(scratch, tables, 0, empty), chosen_point(scratch, tables, 1, empty)
    lanes.put16(out, POINTS + 2 * j, first & 255 | (second & 255) << 8)
    lanes.store(scratch, ROOM + j, lanes.to_float(first >> 8 | second >> 8 << 2))
    lanes.store(scratch, SCALES + j, lanes.where(empty, 0.0, lanes.fabs(scale)))


def _finish(scratch: Lanes, out: Lanes) -> None:
    largest = largest_scale(scratch, 16)
    scale = largest / 31.0
    nothing = largest == 0.0
    lanes.put16(out, SCALE, lanes.where(nothing, 0, to_half(scale * 0.9875)))
    for j in range(8):
        low, high = lanes.to_int(lanes.load(scratch, ROOM + 2 * j)), lanes.to_int(lanes.load(scratch, ROOM + 2 * j + 1))
        lanes.put8(out, HIGH_BITS + j, low | high << 4)
        low = odd_level(1.0 / scale, lanes.load(scratch, SCALES + 2 * j), 15)
        high = odd_level(1.0 / scale, lanes.load(scratch, SCALES + 2 * j + 1), 15)
        lanes.put8(out, LEVEL_SCALES + j, lanes.where(nothing, 0, low | high << 4))


def decode_block(data: Lanes, tables: Any, y: Lanes) -> None:
    """Scale times magnitude, with its sign."""
    scale = from_half(lanes.splat16(data, SCALE))
    for j in range(16):
        level = lanes.splat8(data, LEVEL_SCALES + j // 2) >> j % 2 * 4 & 15
        step = scale * (lanes.to_float(level) + 0.5) * 0.25
        high = lanes.splat8(data, HIGH_BITS + j // 2) >> j % 2 * 4
        for i in range(0, 16, lanes.WIDTH):
            number = lanes.numbers() + i
            half = number >> 3
            point = lanes.splat16(data, POINTS + 2 * j) >> half * 8 & 255 | (high >> half * 2 & 3) << 8
            magnitude = lanes.gather_group8(tables[MAGNITUDES], point, number)
            lanes.write(y, 16 * j + i, step * magnitude * sign_of(lanes.splat16(data, SIGNS + 2 * j), number))
