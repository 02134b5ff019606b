"""IQ2_XXS: 8 sub-blocks of 32 values, each with a 4-bit scale; groups of 8 are one of 256 points, with 7 sign bits."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.grid import (
    LEVELS,
    MAGNITUDES,
    SCALES,
    SCRATCH,
    VALUES,
    WEIGHTS,
    WORDS,
    chosen_point,
    even_signs,
    fit_iq2_xxs,
    largest_scale,
    largest_value,
    odd_level,
    sign_of,
    store_magnitudes,
    with_parity,
)
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.search import NOTHING, mean_square, spread_weights, store_fitted_levels
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

SCALE, POINTS, SIGNS = 0, 2, 6  # float16; per sub-block uint8[4] and uint32: 4 times 7 sign bits, 4 bits of scale
TYPE = TensorType(
    "IQ2_XXS", id=16, block=256, bytes=2 + 64, needs_importance=True, scratch=SCRATCH, module_name=__name__
)


def tables() -> tuple[Any, ...]:
    """Return the grid and its neighbours."""
    found: tuple[Any, ...] = import_module("gguf_mla.ggtypes.shared.grid_tables").grid_tables("IQ2_XXS", 2)
    return found


def encode_weighted(x: Lanes, w: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Each sub-block's scale is the best of 13, refitted; the largest becomes level 15."""
    square = mean_square(x, 0, 256, 1.0)
    for j in range(8):
        spread_weights(x, 32 * j, w, 32, square, scratch, WEIGHTS)
        _fit(x, j, scratch, tables, out)
    largest = largest_scale(scratch, 8)
    scale = largest / 31.0
    nothing = largest == 0.0
    lanes.put16(out, SCALE, lanes.where(nothing, 0, to_half(scale)))
    for j in range(8):
        level = odd_level(1.0 / scale, lanes.load(scratch, SCALES + j), 15)
        word = lanes.bits(lanes.load(scratch, WORDS + j)) | level << 28
        lanes.put32(out, SIGNS + 8 * j, lanes.where(nothing, 0, word))


def _fit(x: Lanes, j: int, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Scale, points and signs of sub-block j."""
    store_magnitudes(x, 32 * j, 32, scratch)
    signs = lanes.full_int(0)
    for k in range(4):
        signs = signs | even_signs(x, 32 * j + 8 * k, scratch, k) << 7 * k
    start = store_fitted_levels(scratch, VALUES, WEIGHTS, 32, 4, LEVELS)
    empty = (largest_value(scratch, 32) < NOTHING) | ~(start * 3.0 > 0.0)
    scale = fit_iq2_xxs(scratch, tables, 32, 6, 0.1, lanes.where(empty, 1.0, start * 3.0), start)
    signs = lanes.where(scale < 0.0, signs ^ 0x0FFFFFFF, signs)
    points = lanes.full_int(0)
    for k in range(4):
        points = points | chosen_point(scratch, tables, k, empty) << 8 * k
    lanes.put32(out, POINTS + 8 * j, points)
    lanes.store(scratch, WORDS + j, lanes.from_bits(lanes.where(empty, 0, signs)))
    lanes.store(scratch, SCALES + j, lanes.where(empty, 0.0, lanes.fabs(scale)))


def decode_block(data: Lanes, tables: Any, y: Lanes) -> None:
    """Scale times magnitude, with its sign."""
    scale = from_half(lanes.splat16(data, SCALE))
    for j in range(8):
        word = lanes.splat32(data, SIGNS + 8 * j)
        step = scale * (lanes.to_float(word >> 28 & 15) + 0.5) * 0.25
        for i in range(0, 32, lanes.WIDTH):
            number = lanes.numbers() + i
            point = lanes.splat32(data, POINTS + 8 * j) >> (number >> 3) * 8 & 255
            signs = with_parity(word >> (number >> 3) * 7 & 127)
            magnitude = lanes.gather_group8(tables[MAGNITUDES], point, number)
            lanes.write(y, 32 * j + i, step * magnitude * sign_of(signs, number & 7))
