"""MXFP4: 32 values share a power of two; each is a 4-bit float."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.e2m1 import doubled, largest_magnitude, store_codes
from gguf_mla.ggtypes.shared.planes import pack_planes, plane
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

SCALE, NIBBLES = 0, 1  # uint8 exponent, uint8[16]
ROUNDED_UP = (0, 1, 2, 5, 11, 22, 44, 88)  # floor(2**b * log(2)): for `floor_log2`
TYPE = TensorType("MXFP4", id=39, block=32, bytes=1 + 16, scratch=32, module_name=__name__)


def encode(x: Lanes, scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Encode: the exponent is that of the largest magnitude, less two; each value takes the nearest float."""
    largest = largest_magnitude(x, 0, 32)
    exponent = lanes.where(largest > 0.0, floor_log2(largest) - 2 + 127, 0) & 255
    lanes.put8(out, SCALE, exponent)
    store_codes(x, 0, 32, half_power(exponent), scratch, 0)
    pack_planes(scratch, 0, 16, 2, 4, 0, out, NIBBLES, 16)


def decode_block(data: Lanes, _tables: Any, y: Lanes) -> None:
    """Power of two times float."""
    scale = half_power(lanes.splat8(data, SCALE))
    for j in range(0, 16, lanes.WIDTH):
        lanes.write(y, j, lanes.to_float(doubled(plane(data, NIBBLES + j, 0, 4))) * scale)
        lanes.write(y, j + 16, lanes.to_float(doubled(plane(data, NIBBLES + j, 1, 4))) * scale)


def floor_log2(value: Lanes) -> Lanes:
    """F → I: floor(log2f(value)) of a positive value as C computes it.

    log2f rounds, so a value a few steps below a power of two already gives that power's exponent: within
    2**b / log2(e) steps, where b is the number of bits the exponent takes beyond its first.
    """
    small = value < 2.0**-126
    word = lanes.bits(lanes.where(small, value * 2.0**24, value))
    exponent = (word >> 23) - 127 - lanes.where(small, 24, lanes.full_int(0))
    size, steps = exponent ^ exponent >> 31, lanes.full_int(0)
    for bit in range(1, 8):
        steps = lanes.where(size >= 1 << bit, ROUNDED_UP[bit], steps)
    return lanes.where((1 << 23) - (word & 0x007FFFFF) <= steps, exponent + 1, exponent)


def half_power(exponent: Lanes) -> Lanes:
    """I → F: 2 ** (exponent - 128); half of what the exponent stands for, since `doubled` values multiply it."""
    return lanes.from_bits(lanes.where(exponent < 2, lanes.full_int(0x00200000) << exponent, exponent - 1 << 23))
