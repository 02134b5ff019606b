"""F32: one IEEE float32 per value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import lanes
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

TYPE = TensorType("F32", id=0, block=1, bytes=4, module_name=__name__)


def encode_value(value: Lanes) -> Lanes:
    """F → I: its bit pattern."""
    return lanes.bits(value)


def decode_value(word: Lanes) -> Lanes:
    """I → F: the value of a bit pattern."""
    return lanes.from_bits(word)
