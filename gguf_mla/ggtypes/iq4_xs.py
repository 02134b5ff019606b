"""IQ4_XS: 8 sub-blocks of 32 values, each with a 6-bit scale; each value names one of 16 unevenly spaced values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.planes import pack_planes, plane
from gguf_mla.ggtypes.shared.rounding import clamp, nearest
from gguf_mla.ggtypes.shared.search import extreme, mean_square, reciprocal, spread_weights, store_squares
from gguf_mla.ggtypes.shared.uneven import fit_uneven, store_indices, tables
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

__all__ = ["TYPE", "decode_block", "encode", "encode_weighted", "tables"]

SCALE, HIGH_BITS, LOW_BITS, NIBBLES = 0, 2, 4, 8  # float16, uint16, uint8[4], uint8[128]
WEIGHTS, SCALES, LEVELS = 0, 32, 40  # rows of scratch
TYPE = TensorType("IQ4_XS", id=23, block=256, bytes=2 + 2 + 4 + 128, scratch=LEVELS + 256, module_name=__name__)


def encode(x: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Each sub-block's scale is the best of 16, errors weighed by x²; the extreme scale becomes level -32."""
    for j in range(8):
        store_squares(x, 32 * j, 32, scratch, WEIGHTS)
        lanes.store(scratch, SCALES + j, fit_uneven(x, 32 * j, scratch[WEIGHTS:], tables))
    _finish(x, scratch, tables, out)


def encode_weighted(x: Lanes, w: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    """Each sub-block's scale is the best of 16 by weighted squared error; the extreme scale becomes level -32."""
    square = mean_square(x, 0, 256, 2.0)
    for j in range(8):
        spread_weights(x, 32 * j, w, 32, square, scratch, WEIGHTS)
        lanes.store(scratch, SCALES + j, fit_uneven(x, 32 * j, scratch[WEIGHTS:], tables))
    _finish(x, scratch, tables, out)


def _finish(x: Lanes, scratch: Lanes, tables: Any, out: Lanes) -> None:
    _, value = extreme(scratch, SCALES, 8)
    scale = -value / 32.0
    inverse = reciprocal(scale)
    lanes.put16(out, SCALE, to_half(scale))
    low_bits = high_bits = lanes.full_int(0)
    for j in range(8):
        level = clamp(nearest(inverse * lanes.load(scratch, SCALES + j)), -32, 31)
        store_indices(x, 32 * j, reciprocal(scale * lanes.to_float(level)), tables, scratch, LEVELS + 32 * j)
        pack_planes(scratch, LEVELS + 32 * j, 16, 2, 4, 0, out, NIBBLES + 16 * j, 16)
        low_bits = low_bits | (level + 32 & 15) << 4 * j
        high_bits = high_bits | (level + 32 >> 4) << 2 * j
    lanes.put16(out, HIGH_BITS, high_bits)
    lanes.put32(out, LOW_BITS, low_bits)


def decode_block(data: Lanes, tables: Any, y: Lanes) -> None:
    """Scale times sub-block scale times named value."""
    scale = from_half(lanes.splat16(data, SCALE))
    for j in range(8):
        low, high = lanes.splat32(data, LOW_BITS) >> 4 * j & 15, lanes.splat16(data, HIGH_BITS) >> 2 * j & 3
        step = scale * lanes.to_float((low | high << 4) - 32)
        for i in range(0, 16, lanes.WIDTH):
            run = NIBBLES + 16 * j + i
            lanes.write(y, 32 * j + i, step * lanes.lookup(tables[0], plane(data, run, 0, 4)))
            lanes.write(y, 32 * j + i + 16, step * lanes.lookup(tables[0], plane(data, run, 1, 4)))
