"""Q5_K: 8 sub-blocks of 32 values, each with a 6-bit scale and minimum; each value is a 5-bit integer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.affine import fit, fit_exact
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.planes import pack_planes, plane
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
    limit_levels,
    minimum_level,
    pack_scales,
    scale_level,
    store_even_weights,
)
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

SCALE, MINIMUM, LEVEL_SCALES, FIFTHS, NIBBLES = 0, 2, 4, 16, 48  # float16, float16, uint8[12], uint8[32], uint8[128]
TOP = 31
TYPE = TensorType("Q5_K", id=13, block=256, bytes=2 + 2 + 12 + 32 + 128, scratch=SCRATCH, module_name=__name__)


def encode(x: Lanes, scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Each sub-block takes the best of 17 fits; the largest scale and minimum become level 63."""
    for j in range(8):
        store_even_weights(x, 32 * j, 32, scratch)
        found = fit_exact(x, 32 * j, scratch[WEIGHTS:], scratch[TRIAL:], 32, TOP, -0.5, 0.1, 16)
        keep_fit(scratch, j, found[0], found[1], found[2], found[3])
    scale = to_half(store_largest_levels(scratch, SCALES, 8, 63, SCALE_LEVELS))
    minimum = to_half(store_largest_levels(scratch, MINIMA, 8, 63, MINIMUM_LEVELS))
    _put_scales(scratch, scale, minimum, out)
    choose_levels_exact(x, scratch, 32, TOP, from_half(scale), from_half(minimum))
    _put_levels(scratch, out)


def encode_weighted(x: Lanes, w: Lanes, scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Each sub-block takes the best of 38 weighted fits; scales and minima are fitted, weighed by their sub-blocks."""
    square = mean_square(x, 0, 256, 2.0)
    for j in range(8):
        total = spread_weights(x, 32 * j, w, 32, square, scratch, WEIGHTS)
        lanes.store(scratch, TOTALS + j, total)
        found = fit(x, 32 * j, scratch[WEIGHTS:], scratch[TRIAL:], 32, TOP, -0.9, 0.05, 37)
        keep_fit(scratch, j, found[0], found[1], found[2], found[3])
    scale = to_half(store_fitted_levels(scratch, SCALES, TOTALS, 8, 63, SCALE_LEVELS))
    minimum = to_half(store_fitted_levels(scratch, MINIMA, TOTALS, 8, 63, MINIMUM_LEVELS))
    limit_levels(scratch, SCALE_LEVELS, 8, 63)
    limit_levels(scratch, MINIMUM_LEVELS, 8, 63)
    _put_scales(scratch, scale, minimum, out)
    choose_levels(x, scratch, 32, TOP, from_half(scale), from_half(minimum))
    _put_levels(scratch, out)


def _put_scales(scratch: Lanes, scale: Lanes, minimum: Lanes, out: Lanes) -> None:
    lanes.put16(out, SCALE, scale)
    lanes.put16(out, MINIMUM, minimum)
    pack_scales(scratch, out, LEVEL_SCALES)


def _put_levels(scratch: Lanes, out: Lanes) -> None:
    pack_planes(scratch, LEVELS, 32, 8, 1, 4, out, FIFTHS, 32)
    for j in range(4):
        pack_planes(scratch, LEVELS + 64 * j, 32, 2, 4, 0, out, NIBBLES + 32 * j, 32)


def decode_block(data: Lanes, _tables: Any, y: Lanes) -> None:
    """Scale times integer, minus the minimum."""
    scale, minimum = from_half(lanes.splat16(data, SCALE)), from_half(lanes.splat16(data, MINIMUM))
    for j in range(8):
        step = scale * scale_level(data, LEVEL_SCALES, j)
        low = minimum * minimum_level(data, LEVEL_SCALES, j)
        for i in range(0, 32, lanes.WIDTH):
            level = plane(data, NIBBLES + j // 2 * 32 + i, j % 2, 4) | plane(data, FIFTHS + i, j, 1) << 4
            lanes.write(y, 32 * j + i, step * lanes.to_float(level) - low)
