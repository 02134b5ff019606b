"""IQ4_NL: 32 values share one float16 scale; each names one of 16 unevenly spaced values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.planes import pack_planes, plane
from gguf_mla.ggtypes.shared.search import mean_square, reciprocal, spread_weights, store_squares
from gguf_mla.ggtypes.shared.uneven import fit_uneven, store_indices, tables
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

__all__ = ["TYPE", "decode_block", "encode", "encode_weighted", "tables"]

SCALE, NIBBLES = 0, 2  # float16, uint8[16]
WEIGHTS, LEVELS = 0, 32  # rows of scratch
TYPE = TensorType("IQ4_NL", id=20, block=32, bytes=2 + 16, scratch=64, module_name=__name__)


def encode(x: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Encode: the scale is the best of 16, errors weighed by x²."""
    store_squares(x, 0, 32, scratch, WEIGHTS)
    _finish(x, scratch, tables, out)


def encode_weighted(x: Lanes, w: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Encode: the scale is the best of 16 by weighted squared error."""
    spread_weights(x, 0, w, 32, mean_square(x, 0, 32, 2.0), scratch, WEIGHTS)
    _finish(x, scratch, tables, out)


def _finish(x: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    scale = fit_uneven(x, 0, scratch[WEIGHTS:], tables)
    lanes.put16(out, SCALE, to_half(scale))
    store_indices(x, 0, reciprocal(scale), tables, scratch, LEVELS)
    pack_planes(scratch, LEVELS, 16, 2, 4, 0, out, NIBBLES, 16)


def decode_block(data: Lanes, tables: Any, y: Lanes) -> None:
    """Scale times named value."""
    scale = from_half(lanes.splat16(data, SCALE))
    for j in range(0, 16, lanes.WIDTH):
        lanes.write(y, j, scale * lanes.lookup(tables[0], plane(data, NIBBLES + j, 0, 4)))
        lanes.write(y, j + 16, scale * lanes.lookup(tables[0], plane(data, NIBBLES + j, 1, 4)))
