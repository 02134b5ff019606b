"""Q4_1: 32 values share a float16 scale and a float16 minimum; each is a 4-bit integer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.affine import fit, store_affine_levels, store_range_levels
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.planes import pack_kept_planes, plane
from gguf_mla.ggtypes.shared.search import spread_weights
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

SCALE, MINIMUM, NIBBLES = 0, 2, 4  # float16, float16, uint8[16]
SPREAD, WEIGHTS, LEVELS = 0, 1, 33  # rows of scratch
TYPE = TensorType("Q4_1", id=3, block=32, bytes=2 + 2 + 16, scratch=65, row_spread=True, module_name=__name__)


def encode(x: Lanes, scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Scale and minimum map the block's range to 0 … 15."""
    scale, minimum = store_range_levels(x, 15, scratch, LEVELS)
    lanes.put32(out, SCALE, to_half(scale) | to_half(minimum) << 16)
    pack_kept_planes(scratch, LEVELS, 16, 2, 4, 0, out, NIBBLES, 16)


def encode_weighted(x: Lanes, w: Lanes, scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Scale and minimum are the best of 38 fits by weighted squared error."""
    weights, levels = scratch[WEIGHTS:LEVELS], scratch[LEVELS:]
    spread_weights(x, 0, w, 32, lanes.load(scratch, SPREAD), weights, 0)
    scale, minimum, inverse, offset = fit(x, 0, weights, levels, 32, 15, -0.9, 0.05, 37)
    lanes.put32(out, SCALE, to_half(scale) | to_half(minimum) << 16)
    store_affine_levels(x, 0, 32, inverse, offset, 15, scratch, LEVELS)
    pack_kept_planes(scratch, LEVELS, 16, 2, 4, 0, out, NIBBLES, 16)


def decode_block(data: Lanes, _tables: Any, y: Lanes) -> None:
    """Scale times integer, plus the minimum."""
    scale, minimum = from_half(lanes.splat16(data, SCALE)), from_half(lanes.splat16(data, MINIMUM))
    for j in range(0, 16, lanes.WIDTH):
        lanes.write(y, j, lanes.to_float(plane(data, NIBBLES + j, 0, 4)) * scale + minimum)
        lanes.write(y, j + 16, lanes.to_float(plane(data, NIBBLES + j, 1, 4)) * scale + minimum)
