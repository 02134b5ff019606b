"""NVFP4: 4 sub-blocks of 16 values, each with an unsigned 8-bit float as scale; each value is a 4-bit float."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.e2m1 import doubled, largest_magnitude, store_codes
from gguf_mla.ggtypes.shared.planes import pack_planes
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

SCALES, NIBBLES = 0, 4  # uint8[4], uint8[32]
TYPE = TensorType("NVFP4", id=40, block=64, bytes=4 + 32, scratch=16, module_name=__name__)


def encode(x: Lanes, scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Encode: the scale maps the largest magnitude to 6; each value takes the nearest float."""
    for j in range(4):
        code = to_ue4m3(largest_magnitude(x, 16 * j, 16) / 6.0)
        lanes.put8(out, SCALES + j, code)
        store_codes(x, 16 * j, 16, half_of_ue4m3(code), scratch, 0)
        pack_planes(scratch, 0, 8, 2, 4, 0, out, NIBBLES + 8 * j, 8)


def decode_block(data: Lanes, _tables: Any, y: Lanes) -> None:
    """Scale times float."""
    for j in range(4):
        scale = half_of_ue4m3(lanes.splat8(data, SCALES + j))
        for i in range(0, 16, lanes.WIDTH):
            number = lanes.numbers() + i
            byte = lanes.lookup(data, (number & 7) + (NIBBLES + 8 * j))
            lanes.write(y, 16 * j + i, lanes.to_float(doubled(byte >> (number >> 3) * 4 & 15)) * scale)


def to_ue4m3(value: Lanes) -> Lanes:
    """F → I: an unsigned float of 4 exponent bits (bias 7) and 3 fraction bits; halves round up.

    ggml does not use the range from 256 up: it becomes the largest code but one, 448.
    """
    positive = value > 0.0
    word = lanes.bits(value)
    exponent = (word >> 23 & 255) - 120
    code = (exponent << 3) + (word >> 20 & 7) + (word >> 19 & 1)  # a carry out of the fraction raises the exponent
    subnormal = lanes.to_int(value * 512.0 + 0.5)
    code = lanes.where(exponent <= 0, lanes.where(subnormal > 7, 7, subnormal), code)
    return lanes.where(positive, lanes.where(code >= 0x78, 0x7E, code), 0)


def half_of_ue4m3(code: Lanes) -> Lanes:
    """I → F: half the value of a code, since `doubled` values multiply it; 0 for the code of NaN."""
    exponent, fraction = code >> 3 & 15, lanes.to_float(code & 7)
    normal = (fraction / 8.0 + 1.0) * lanes.from_bits(exponent + 120 << 23)
    value = lanes.where(exponent == 0, fraction * 2.0**-9, normal)
    return lanes.where(code == 0x7F, 0.0, value * 0.5)
