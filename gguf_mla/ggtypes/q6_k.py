"""Q6_K: 16 sub-blocks of 16 values, each with an 8-bit scale; each value is a 6-bit integer, offset by 32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.planes import pack_planes, plane
from gguf_mla.ggtypes.shared.rounding import nearest, signed_byte
from gguf_mla.ggtypes.shared.search import NOTHING, extreme, fit_symmetric, store_squares
from gguf_mla.ggtypes.shared.signed_block import (
    EMPTY,
    LEVELS,
    SCALE_LEVELS,
    SCALES,
    SCRATCH,
    WEIGHTS,
    choose_levels,
    keep_fit,
    store_fitted_levels,
)
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

NIBBLES, PAIRS, LEVEL_SCALES, SCALE = 0, 128, 192, 208  # uint8[128], uint8[64], int8[16], float16
TYPE = TensorType("Q6_K", id=14, block=256, bytes=128 + 64 + 16 + 2, scratch=SCRATCH, module_name=__name__)


def encode(x: Lanes, scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Each sub-block takes the best of 19 scales, errors weighed by x²."""
    for j in range(16):
        store_squares(x, 16 * j, 16, scratch, WEIGHTS)
        found = fit_symmetric(x, 16 * j, scratch[WEIGHTS:], 16, 32)
        keep_fit(scratch, j, found[0], found[1], found[2])
    _finish(x, scratch, out)


def encode_weighted(x: Lanes, w: Lanes, scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Each sub-block takes the best of 19 scales, errors weighed by importance."""
    for j in range(16):
        found = fit_symmetric(x, 16 * j, w[16 * j :], 16, 32)
        keep_fit(scratch, j, found[0], found[1], found[2])
    _finish(x, scratch, out)


def _finish(x: Lanes, scratch: Lanes, out: Lanes) -> None:
    """Scales become multiples of the super-block's, the extreme one -128; levels follow."""
    largest, value = extreme(scratch, SCALES, 16)
    nothing = largest < NOTHING
    inverse = lanes.full(-128.0) / lanes.where(nothing, 1.0, value)
    scale = lanes.where(nothing, 0, to_half(1.0 / inverse))
    lanes.put16(out, SCALE, scale)
    for j in range(16):
        level = nearest(inverse * lanes.load(scratch, SCALES + j))
        level = lanes.where(nothing, 0, lanes.where(level > 127, 127, level))
        lanes.put8(out, LEVEL_SCALES + j, level)
        lanes.store(scratch, SCALE_LEVELS + j, lanes.to_float(signed_byte(level)))
        lanes.store(scratch, EMPTY + j, lanes.where(nothing, 1.0, lanes.load(scratch, EMPTY + j)))
    store_fitted_levels(x, scratch, 32)
    choose_levels(x, scratch, 32, from_half(scale))
    for half in range(2):
        at, to = LEVELS + 128 * half, NIBBLES + 64 * half
        pack_planes(scratch, at, 64, 2, 4, 0, out, to, 64)
        pack_planes(scratch, at, 32, 4, 2, 4, out, PAIRS + 32 * half, 32)


def decode_block(data: Lanes, _tables: Any, y: Lanes) -> None:
    """Scale times sub-block scale times integer."""
    scale = from_half(lanes.splat16(data, SCALE))
    for j in range(16):
        step = scale * lanes.to_float(signed_byte(lanes.splat8(data, LEVEL_SCALES + j)))
        half, run, column = j // 8, j // 2 % 4, j % 2 * 16
        for i in range(column, column + 16, lanes.WIDTH):
            low = plane(data, NIBBLES + 64 * half + run % 2 * 32 + i, run // 2, 4)
            level = low | plane(data, PAIRS + 32 * half + i, run, 2) << 4
            lanes.write(y, 128 * half + 32 * run + i, step * lanes.to_float(level - 32))
