"""IQ3_XXS: 8 sub-blocks of 32 values, each with a 4-bit scale; groups of 4 are one of 256 points, with 3½ sign bits."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.grid import (
    MAGNITUDES,
    SCALES,
    SCRATCH,
    WEIGHTS,
    WORDS,
    chosen_point,
    even_signs,
    fit_iq3_xxs,
    largest_scale,
    largest_value,
    odd_level,
    sign_of,
    store_magnitudes,
    with_parity,
)
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.search import mean_square, spread_weights, store_squares
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

SCALE, POINTS, SIGNS = 0, 2, 66  # float16; uint8[64]; per sub-block uint32: 4 times 7 sign bits, 4 bits of scale
ROOM = SCRATCH  # rows of scratch: eight points of each sub-block, in two words
NOTHING = 1e-8
TYPE = TensorType("IQ3_XXS", id=18, block=256, bytes=2 + 64 + 32, scratch=SCRATCH + 16, module_name=__name__)


def tables() -> tuple[Any, ...]:
    """Return the grid and its neighbours."""
    found: tuple[Any, ...] = import_module("gguf_mla.ggtypes.shared.grid_tables").grid_tables("IQ3_XXS", 2)
    return found


def encode(x: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Each sub-block's scale is the best of 31, errors weighed by x²."""
    for j in range(8):
        store_squares(x, 32 * j, 32, scratch, WEIGHTS)
        _fit(x, j, scratch, tables)
    _finish(scratch, out)


def encode_weighted(x: Lanes, w: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Each sub-block's scale is the best of 31 by weighted squared error, refitted; the largest becomes level 15."""
    square = mean_square(x, 0, 256, 2.0)
    for j in range(8):
        spread_weights(x, 32 * j, w, 32, square, scratch, WEIGHTS)
        _fit(x, j, scratch, tables)
    _finish(scratch, out)


def _fit(x: Lanes, j: int, scratch: Lanes, tables: Any) -> None:
    """Scale, points and signs of sub-block j."""
    store_magnitudes(x, 32 * j, 32, scratch)
    signs = lanes.full_int(0)
    for k in range(4):
        signs = signs | even_signs(x, 32 * j + 8 * k, scratch, k) << 7 * k
    largest = largest_value(scratch, 32)
    empty = largest < NOTHING
    scale = fit_iq3_xxs(scratch, tables, 32, 15, 0.2, lanes.where(empty, 1.0, largest), largest / 15.0)
    signs = lanes.where(scale < 0.0, signs ^ 0x0FFFFFFF, signs)
    for half in range(2):
        points = lanes.full_int(0)
        for k in range(4):
            points = points | chosen_point(scratch, tables, 4 * half + k, empty) << 8 * k
        lanes.store(scratch, ROOM + 2 * j + half, lanes.from_bits(points))
    lanes.store(scratch, WORDS + j, lanes.from_bits(lanes.where(empty, 0, signs)))
    lanes.store(scratch, SCALES + j, lanes.where(empty, 0.0, lanes.fabs(scale)))


def _finish(scratch: Lanes, out: Lanes) -> None:
    largest = largest_scale(scratch, 8)
    scale = largest / 31.0
    nothing = largest == 0.0
    lanes.put16(out, SCALE, lanes.where(nothing, 0, to_half(scale * 1.0125)))
    for j in range(16):
        lanes.put32(out, POINTS + 4 * j, lanes.where(nothing, 0, lanes.bits(lanes.load(scratch, ROOM + j))))
    for j in range(8):
        level = odd_level(1.0 / scale, lanes.load(scratch, SCALES + j), 15)
        word = lanes.bits(lanes.load(scratch, WORDS + j)) | level << 28
        lanes.put32(out, SIGNS + 4 * j, lanes.where(nothing, 0, word))


def decode_block(data: Lanes, tables: Any, y: Lanes) -> None:
    """Scale times magnitude, with its sign."""
    scale = from_half(lanes.splat16(data, SCALE))
    for j in range(8):
        word = lanes.splat32(data, SIGNS + 4 * j)
        step = scale * (lanes.to_float(word >> 28 & 15) + 0.5) * 0.5
        for i in range(0, 32, lanes.WIDTH):
            number = lanes.numbers() + i
            point = lanes.splat32(data, POINTS + 8 * j + i // 16 * 4) >> (number >> 2 & 3) * 8 & 255
            signs = with_parity(word >> (number >> 3) * 7 & 127)
            magnitude = lanes.gather_group4(tables[MAGNITUDES], point, number)
            lanes.write(y, 32 * j + i, step * magnitude * sign_of(signs, number & 7))
