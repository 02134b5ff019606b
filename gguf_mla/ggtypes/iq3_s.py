"""IQ3_S: 8 sub-blocks of 32 values, each with a 4-bit scale; groups of 4 are one of 512 points, with 4 sign bits."""

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
    fit_iq3_s,
    largest_scale,
    odd_level,
    sign_byte,
    sign_of,
    store_magnitudes,
)
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.planes import pack_bits
from gguf_mla.ggtypes.shared.search import mean_square, spread_weights, store_squares
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

# float16; uint8[64] low bits of the points; uint8[8] their ninth bits; uint8[32]; uint8[4]
SCALE, POINTS, NINTHS, SIGNS, LEVEL_SCALES = 0, 2, 66, 74, 106
# Rows of scratch: bytes of points and signs as they are written, how many sub-blocks were, and a row for waste.
POINT_BYTES, SIGN_BYTES, WRITTEN, SPARE = SCRATCH, SCRATCH + 64, SCRATCH + 96, SCRATCH + 97
TYPE = TensorType("IQ3_S", id=21, block=256, bytes=2 + 64 + 8 + 32 + 4, scratch=SPARE + 1, module_name=__name__)


def tables() -> tuple[Any, ...]:
    """Return the grid and its neighbours."""
    found: tuple[Any, ...] = import_module("gguf_mla.ggtypes.shared.grid_tables").grid_tables("IQ3_S", 3)
    return found


def encode(x: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Each sub-block's scale is the best of 19, errors weighed by x²."""
    _begin(scratch)
    for j in range(8):
        store_squares(x, 32 * j, 32, scratch, WEIGHTS)
        _fit(x, j, scratch, tables, out)
    _finish(scratch, out)


def encode_weighted(x: Lanes, w: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Each sub-block's scale is the best of 19 by weighted squared error, refitted; the largest becomes level 15."""
    _begin(scratch)
    square = mean_square(x, 0, 256, 2.0)
    for j in range(8):
        spread_weights(x, 32 * j, w, 32, square, scratch, WEIGHTS)
        _fit(x, j, scratch, tables, out)
    _finish(scratch, out)


def _begin(scratch: Lanes) -> None:
    for row in range(POINT_BYTES, SPARE + 1):
        lanes.store(scratch, row, lanes.full(0.0))


def _fit(x: Lanes, j: int, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Scale, points and signs of sub-block j.

    ggml does not advance its output past a sub-block of zeros (`quantize_row_iq3_s_impl` leaves the loop before it
    would), so the points and signs of all later sub-blocks of that block move up, their ninth bits and scales do not.
    Its decoder does not know; such blocks decode wrongly. The bytes here are the same nevertheless.
    """
    largest = store_magnitudes(x, 32 * j, 32, scratch)
    empty = largest == 0.0
    scale = fit_iq3_s(scratch, tables, 32, 9, 0.2, lanes.where(empty, 1.0, largest), largest / 15.0)
    flipped = lanes.where(scale < 0.0, 255, lanes.full_int(0))
    ahead, ninths = lanes.to_int(lanes.load(scratch, WRITTEN)), lanes.full_int(0)
    for k in range(8):
        point = chosen_point(scratch, tables, k, empty)
        _keep(scratch, lanes.where(empty, SPARE, ahead * 8 + (POINT_BYTES + k)), point & 255)
        ninths = ninths | point >> 8 << k
    lanes.put8(out, NINTHS + j, ninths)
    for k in range(4):
        signs = sign_byte(x, 32 * j + 8 * k) ^ flipped
        _keep(scratch, lanes.where(empty, SPARE, ahead * 4 + (SIGN_BYTES + k)), signs)
    lanes.store(scratch, WRITTEN, lanes.to_float(lanes.where(empty, ahead, ahead + 1)))
    lanes.store(scratch, SCALES + j, lanes.where(empty, 0.0, lanes.fabs(scale)))


def _keep(scratch: Lanes, row: Lanes, byte: Lanes) -> None:
    lanes.scatter(scratch, row, lanes.to_float(byte))


def _finish(scratch: Lanes, out: Lanes) -> None:
    largest = largest_scale(scratch, 8)
    scale = largest / 31.0
    nothing = largest == 0.0
    lanes.put16(out, SCALE, lanes.where(nothing, 0, to_half(scale * 1.033)))
    pack_bits(scratch, POINT_BYTES, 64, 8, 0, out, POINTS)
    pack_bits(scratch, SIGN_BYTES, 32, 8, 0, out, SIGNS)
    for j in range(4):
        low = odd_level(1.0 / scale, lanes.load(scratch, SCALES + 2 * j), 15)
        high = odd_level(1.0 / scale, lanes.load(scratch, SCALES + 2 * j + 1), 15)
        lanes.put8(out, LEVEL_SCALES + j, lanes.where(nothing, 0, low | high << 4))


def decode_block(data: Lanes, tables: Any, y: Lanes) -> None:
    """Scale times magnitude, with its sign."""
    scale = from_half(lanes.splat16(data, SCALE))
    for j in range(8):
        level = lanes.splat8(data, LEVEL_SCALES + j // 2) >> j % 2 * 4 & 15
        step = scale * lanes.to_float(level * 2 + 1)
        for i in range(0, 32, lanes.WIDTH):
            number = lanes.numbers() + i
            group = number >> 2
            ninth = lanes.splat8(data, NINTHS + j) >> group & 1
            point = lanes.splat32(data, POINTS + 8 * j + i // 16 * 4) >> (group & 3) * 8 & 255 | ninth << 8
            magnitude = lanes.gather_group4(tables[MAGNITUDES], point, number)
            signs = lanes.splat32(data, SIGNS + 4 * j)
            lanes.write(y, 32 * j + i, step * magnitude * sign_of(signs, number))
