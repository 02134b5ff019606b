"""Q2_K: 16 sub-blocks of 16 values, each with a 4-bit scale and minimum; each value is a 2-bit integer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.affine import fit, fit_absolute
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.planes import level_word, pack_planes, plane
from gguf_mla.ggtypes.shared.search import mean_square, spread_weights, store_fitted_levels, store_largest_levels
from gguf_mla.ggtypes.shared.superblock import (
    LEVELS,
    MINIMA,
    MINIMUM_LEVELS,
    SCALE_LEVELS,
    SCALES,
    SCRATCH,
    TOTALS,
    TRIAL,
    WEIGHTS,
    choose_levels,
    choose_levels_exact,
    keep_fit,
)
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

LEVEL_SCALES, PAIRS, SCALE, MINIMUM = 0, 16, 80, 82  # uint8[16], uint8[64], float16, float16
TYPE = TensorType("Q2_K", id=10, block=256, bytes=16 + 64 + 2 + 2, scratch=SCRATCH, module_name=__name__)


def encode(x: Lanes, scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Each sub-block takes the best of 17 fits by absolute error; the largest scale and minimum become level 15."""
    for j in range(16):
        for i in range(16):
            lanes.store(scratch, WEIGHTS + i, lanes.fabs(lanes.load(x, 16 * j + i)))
        found = fit_absolute(x, 16 * j, scratch[WEIGHTS:], scratch[TRIAL:], 16, 3, -0.5, 0.1, 16)
        keep_fit(scratch, j, found[0], found[1], found[2], found[3])
    scale = to_half(store_largest_levels(scratch, SCALES, 16, 15, SCALE_LEVELS))
    minimum = to_half(store_largest_levels(scratch, MINIMA, 16, 15, MINIMUM_LEVELS))
    _put_scales(scratch, scale, minimum, out)
    choose_levels_exact(x, scratch, 16, 3, from_half(scale), from_half(minimum))
    _put_levels(scratch, out)


def encode_weighted(x: Lanes, w: Lanes, scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Each sub-block takes the best of 38 weighted fits; scales and minima are fitted, weighed by their sub-blocks."""
    square = mean_square(x, 0, 256, 1.0)
    for j in range(16):
        total = spread_weights(x, 16 * j, w, 16, square, scratch, WEIGHTS)
        lanes.store(scratch, TOTALS + j, total)
        found = fit(x, 16 * j, scratch[WEIGHTS:], scratch[TRIAL:], 16, 3, -0.9, 0.05, 37)
        keep_fit(scratch, j, found[0], found[1], found[2], found[3])
    scale = to_half(store_fitted_levels(scratch, SCALES, TOTALS, 16, 15, SCALE_LEVELS))
    minimum = to_half(store_fitted_levels(scratch, MINIMA, TOTALS, 16, 15, MINIMUM_LEVELS))
    _put_scales(scratch, scale, minimum, out)
    choose_levels(x, scratch, 16, 3, from_half(scale), from_half(minimum))
    _put_levels(scratch, out)


def _put_scales(scratch: Lanes, scale: Lanes, minimum: Lanes, out: Lanes) -> None:
    """Write both float16 scales and the levels, two nibbles to a byte; leave in scratch what a reader will see."""
    lanes.put16(out, SCALE, scale)
    lanes.put16(out, MINIMUM, minimum)
    for j in range(16):
        scale_level = level_word(lanes.load(scratch, SCALE_LEVELS + j))
        minimum_level = level_word(lanes.load(scratch, MINIMUM_LEVELS + j))
        byte = (scale_level | minimum_level << 4) & 255
        lanes.put8(out, LEVEL_SCALES + j, byte)
        lanes.store(scratch, SCALE_LEVELS + j, lanes.to_float(byte & 15))
        lanes.store(scratch, MINIMUM_LEVELS + j, lanes.to_float(byte >> 4))


def _put_levels(scratch: Lanes, out: Lanes) -> None:
    for half in range(2):
        pack_planes(scratch, LEVELS + 128 * half, 32, 4, 2, 0, out, PAIRS + 32 * half, 32)


def decode_block(data: Lanes, _tables: Any, y: Lanes) -> None:
    """Scale times integer, minus the minimum."""
    scale, minimum = from_half(lanes.splat16(data, SCALE)), from_half(lanes.splat16(data, MINIMUM))
    for j in range(16):
        levels = lanes.splat8(data, LEVEL_SCALES + j)
        step, low = scale * lanes.to_float(levels & 15), minimum * lanes.to_float(levels >> 4)
        run = PAIRS + j // 8 * 32 + j % 2 * 16
        for i in range(0, 16, lanes.WIDTH):
            level = plane(data, run + i, j // 2 % 4, 2)
            lanes.write(y, 16 * j + i, step * lanes.to_float(level) - low)
