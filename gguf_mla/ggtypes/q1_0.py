"""Q1_0: 128 values share one float16 scale; each is a sign bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

SCALE, BITS = 0, 2  # float16, uint8[16]
TYPE = TensorType("Q1_0", id=41, block=128, bytes=2 + 16, module_name=__name__)


def encode(x: Lanes, _scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Encode: the scale is the mean magnitude; a bit is set for values that are not negative."""
    total = lanes.full(0.0)
    for first in range(0, 128, 32):
        word = lanes.full_int(0)
        for i in range(32):
            value = lanes.load(x, first + i)
            total = total + lanes.fabs(value)
            word = word | lanes.where(value >= 0.0, lanes.full_int(1) << i, 0)
        lanes.put32(out, BITS + first // 8, word)
    lanes.put16(out, SCALE, to_half(total / 128.0))


def decode_block(data: Lanes, _tables: Any, y: Lanes) -> None:
    """Scale, with its sign."""
    scale = from_half(lanes.splat16(data, SCALE))
    for i in range(0, 128, lanes.WIDTH):
        bit = lanes.splat16(data, BITS + i // 16 * 2) >> lanes.numbers() + i % 16 & 1
        lanes.write(y, i, lanes.where(bit == 1, scale, -scale))
