"""TQ2_0: 256 values share one float16 scale; each is -1, 0 or 1 in two bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.planes import plane
from gguf_mla.ggtypes.shared.rounding import round_away
from gguf_mla.ggtypes.shared.search import extreme, reciprocal
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

PAIRS, SCALE = 0, 64  # uint8[64], float16
TYPE = TensorType("TQ2_0", id=35, block=256, bytes=64 + 2, module_name=__name__)


def encode(x: Lanes, _scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Encode: the scale is the largest magnitude."""
    largest, _ = extreme(x, 0, 256)
    inverse = reciprocal(largest)
    lanes.put16(out, SCALE, to_half(largest))
    for first in range(0, 64, 4):
        word = lanes.full_int(0)
        for byte in range(4):
            at = first // 32 * 128 + first % 32 + byte
            for k in range(4):
                word = word | (round_away(lanes.load(x, at + 32 * k) * inverse) + 1 & 3) << 8 * byte + 2 * k
        lanes.put32(out, PAIRS + first, word)


def decode_block(data: Lanes, _tables: Any, y: Lanes) -> None:
    """Scale times level."""
    scale = from_half(lanes.splat16(data, SCALE))
    for run in range(8):
        for i in range(0, 32, lanes.WIDTH):
            level = plane(data, PAIRS + run // 4 * 32 + i, run % 4, 2)
            lanes.write(y, 32 * run + i, lanes.to_float(level - 1) * scale)
