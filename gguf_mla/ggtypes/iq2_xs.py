"""IQ2_XS: 16 sub-blocks of 16 values, each with a 4-bit scale; groups of 8 are one of 512 points, with 7 sign bits."""

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
    even_signs,
    fit_grid,
    largest_scale,
    largest_value,
    odd_level,
    sign_of,
    store_magnitudes,
    with_parity,
)
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.search import NOTHING, mean_square, spread_weights
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

SCALE, POINTS, LEVEL_SCALES = 0, 2, 66  # float16; uint16[32]: 9 bits of point, 7 of signs; uint8[8]
ROOM = SCRATCH  # rows of scratch: one 32-bit word per sub-block
TYPE = TensorType(
    "IQ2_XS", id=17, block=256, bytes=2 + 64 + 8, needs_importance=True, scratch=SCRATCH + 16, module_name=__name__
)


def tables() -> tuple[Any, ...]:
    """Return the grid and its neighbours."""
    found: tuple[Any, ...] = import_module("gguf_mla.ggtypes.shared.grid_tables").grid_tables("IQ2_XS", 2)
    return found


def encode_weighted(x: Lanes, w: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Each sub-block's scale is the best of 19, refitted; the largest becomes level 15."""
    square = mean_square(x, 0, 256, 1.0)
    for j in range(16):
        spread_weights(x, 16 * j, w, 16, square, scratch, WEIGHTS)
        _fit(x, j, scratch, tables)
    largest = largest_scale(scratch, 16)
    scale = largest / 31.0
    nothing = largest == 0.0
    lanes.put16(out, SCALE, lanes.where(nothing, 0, to_half(scale)))
    for j in range(16):
        lanes.put32(out, POINTS + 4 * j, lanes.where(nothing, 0, lanes.bits(lanes.load(scratch, ROOM + j))))
    for j in range(8):
        low = odd_level(1.0 / scale, lanes.load(scratch, SCALES + 2 * j), 15)
        high = odd_level(1.0 / scale, lanes.load(scratch, SCALES + 2 * j + 1), 15)
        lanes.put8(out, LEVEL_SCALES + j, lanes.where(nothing, 0, low | high << 4))


def _fit(x: Lanes, j: int, scratch: Lanes, tables: Any) -> None:
    """Scale, points and signs of sub-block j."""
    store_magnitudes(x, 16 * j, 16, scratch)
    first, second = even_signs(x, 16 * j, scratch, 0), even_signs(x, 16 * j + 8, scratch, 1)
    largest = largest_value(scratch, 16)
    empty = largest < NOTHING
    scale = fit_grid(scratch, tables, 16, 9, 0.1, lanes.where(empty, 1.0, largest), largest / 5.0)
    first, second = lanes.where(scale < 0.0, first ^ 127, first), lanes.where(scale < 0.0, second ^ 127, second)
    low, high = (
        first << 9 | chosen_point(scratch, tables, 0, empty),
        second << 9 | chosen_point(scratch, tables, 1, empty),
    )
    word = low | high << 16
    lanes.store(scratch, ROOM + j, lanes.from_bits(lanes.where(empty, 0, word)))
    lanes.store(scratch, SCALES + j, lanes.where(empty, 0.0, lanes.fabs(scale)))


def decode_block(data: Lanes, tables: Any, y: Lanes) -> None:
    """Scale times magnitude, with its sign."""
    scale = from_half(lanes.splat16(data, SCALE))
    for j in range(16):
        level = lanes.splat8(data, LEVEL_SCALES + j // 2) >> j % 2 * 4 & 15
        step = scale * (lanes.to_float(level) + 0.5) * 0.25
        for i in range(0, 16, lanes.WIDTH):
            number = lanes.numbers() + i
            word = lanes.splat32(data, POINTS + 4 * j) >> (number >> 3) * 16
            magnitude = lanes.gather_group8(tables[MAGNITUDES], word & 511, number)
            lanes.write(y, 16 * j + i, step * magnitude * sign_of(with_parity(word >> 9 & 127), number & 7))
