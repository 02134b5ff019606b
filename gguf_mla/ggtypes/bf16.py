"""BF16: the upper half of a float32 per value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import lanes
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

TYPE = TensorType("BF16", id=30, block=1, bytes=2, module_name=__name__)


def encode_value(value: Lanes) -> Lanes:
    """F → I: rounded to nearest, ties to even; NaN stays NaN and is quieted."""
    word = lanes.bits(value)
    rounded = word + 0x7FFF + (word >> 16 & 1) >> 16
    nan = (word & 0x7FFFFFFF) > 0x7F800000
    return lanes.where(nan, word >> 16 | 64, rounded) & 0xFFFF


def decode_value(word: Lanes) -> Lanes:
    """I → F: exact."""
    return lanes.from_bits(word << 16)
