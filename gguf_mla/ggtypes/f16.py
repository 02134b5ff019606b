"""F16: one IEEE float16 per value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

TYPE = TensorType("F16", id=1, block=1, bytes=2, module_name=__name__)


def encode_value(value: Lanes) -> Lanes:
    """F → I: rounded to nearest, ties to even."""
    return to_half(value)


def decode_value(word: Lanes) -> Lanes:
    """I → F: exact."""
    return from_half(word)
