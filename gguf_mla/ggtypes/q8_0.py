"""Q8_0: 32 values share one float16 scale; each is an 8-bit integer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.rounding import round_away, signed_byte
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

SCALE, VALUES = 0, 2  # float16, int8[32]
TYPE = TensorType("Q8_0", id=8, block=32, bytes=2 + 32, module_name=__name__)


def encode(x: Lanes, _scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Encode: the scale maps the largest magnitude to 127; values round half away from zero."""
    largest = lanes.full(0.0)
    for i in range(32):
        magnitude = lanes.fabs(lanes.load(x, i))
        largest = lanes.where(largest > magnitude, largest, magnitude)
    scale = largest / 127.0
    inverse = lanes.where(scale == 0.0, 0.0, 1.0 / scale)
    lanes.put16(out, SCALE, to_half(scale))
    for i in range(0, 32, 4):
        word = lanes.full_int(0)
        for k in range(4):
            word = word | (round_away(lanes.load(x, i + k) * inverse) & 255) << 8 * k
        lanes.put32(out, VALUES + i, word)


def decode_block(data: Lanes, _tables: Any, y: Lanes) -> None:
    """Scale times integer."""
    scale = from_half(lanes.splat16(data, SCALE))
    for i in range(0, 32, lanes.WIDTH):
        lanes.write(y, i, lanes.to_float(signed_byte(lanes.run8(data, VALUES + i))) * scale)
