"""Q5_0: 32 values share one float16 scale; each is a 5-bit integer, offset by 16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.planes import pack_kept_bits, pack_kept_planes, plane, run_bits
from gguf_mla.ggtypes.shared.search import fit_symmetric, spread_weights, store_signed_levels, store_symmetric_levels
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

SCALE, FIFTHS, NIBBLES = 0, 2, 6  # float16, uint32, uint8[16]
SPREAD, WEIGHTS, LEVELS = 0, 1, 33  # rows of scratch
TYPE = TensorType("Q5_0", id=6, block=32, bytes=2 + 4 + 16, scratch=65, row_spread=True, module_name=__name__)


def encode(x: Lanes, scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Encode: the scale maps the value of largest magnitude to -16."""
    lanes.put16(out, SCALE, to_half(store_signed_levels(x, 16, scratch, LEVELS)))
    _pack(scratch, out)


def encode_weighted(x: Lanes, w: Lanes, scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Encode: the scale is the best of 19 by weighted squared error."""
    weights = scratch[WEIGHTS:LEVELS]
    spread_weights(x, 0, w, 32, lanes.load(scratch, SPREAD), weights, 0)
    scale, inverse, empty = fit_symmetric(x, 0, weights, 32, 16)
    lanes.put16(out, SCALE, to_half(scale))
    store_symmetric_levels(x, 0, 32, inverse, empty, 16, scratch, LEVELS)
    _pack(scratch, out)


def _pack(scratch: Lanes, out: Lanes) -> None:
    pack_kept_bits(scratch, LEVELS, 32, 1, 4, out, FIFTHS)
    pack_kept_planes(scratch, LEVELS, 16, 2, 4, 0, out, NIBBLES, 16)


def decode_block(data: Lanes, _tables: Any, y: Lanes) -> None:
    """Scale times integer."""
    scale = from_half(lanes.splat16(data, SCALE))
    for j in range(0, 16, lanes.WIDTH):
        low = (plane(data, NIBBLES + j, 0, 4) | run_bits(data, FIFTHS, j) << 4) - 16
        high = (plane(data, NIBBLES + j, 1, 4) | run_bits(data, FIFTHS, j + 16) << 4) - 16
        lanes.write(y, j, lanes.to_float(low) * scale)
        lanes.write(y, j + 16, lanes.to_float(high) * scale)
