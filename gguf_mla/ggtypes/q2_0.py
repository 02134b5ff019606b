"""Q2_0: 64 values share one float16 scale; each is -1, 0, 1 or 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.rounding import clamp, round_away
from gguf_mla.ggtypes.shared.search import extreme, reciprocal
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

SCALE, PAIRS = 0, 2  # float16, uint8[16]
TYPE = TensorType("Q2_0", id=42, block=64, bytes=2 + 16, module_name=__name__)


def encode(x: Lanes, _scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Encode: the scale is the largest magnitude."""
    largest, _ = extreme(x, 0, 64)
    inverse = reciprocal(largest)
    lanes.put16(out, SCALE, to_half(largest))
    for first in range(0, 64, 16):
        word = lanes.full_int(0)
        for i in range(16):
            word = word | clamp(round_away(lanes.load(x, first + i) * inverse) + 1, 0, 3) << 2 * i
        lanes.put32(out, PAIRS + first // 4, word)


def decode_block(data: Lanes, _tables: Any, y: Lanes) -> None:
    """Scale times level."""
    scale = from_half(lanes.splat16(data, SCALE))
    for i in range(0, 64, lanes.WIDTH):
        word = lanes.splat32(data, PAIRS + i // 16 * 4)
        level = (word >> (lanes.numbers() + i % 16) * 2 & 3) - 1
        lanes.write(y, i, lanes.to_float(level) * scale)
