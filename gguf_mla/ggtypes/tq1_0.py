"""TQ1_0: 256 values share one float16 scale; each is -1, 0 or 1, five to a byte as digits of base 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.half import from_half, to_half
from gguf_mla.ggtypes.shared.rounding import round_away
from gguf_mla.ggtypes.shared.search import extreme, reciprocal
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

FIVES, FOURS, SCALE = 0, 48, 52  # uint8[48], uint8[4], float16
# Runs of bytes: where they begin, how many, the first value they hold (a byte's are that many apart), digits per byte.
RUNS = ((0, 32, 0, 5), (32, 16, 160, 5), (48, 4, 240, 4))
TYPE = TensorType("TQ1_0", id=34, block=256, bytes=48 + 4 + 2, module_name=__name__)


def encode(x: Lanes, _scratch: Lanes, _tables: Any, out: Lanes) -> None:
    """Encode: the scale is the largest magnitude."""
    largest, _ = extreme(x, 0, 256)
    inverse = reciprocal(largest)
    lanes.put16(out, SCALE, to_half(largest))
    for begin, count, first, digits in RUNS:
        for m in range(0, count, 4):
            word = lanes.full_int(0)
            for byte in range(4):
                word = word | packed_digits(x, first + m + byte, count, digits, inverse) << 8 * byte
            lanes.put32(out, begin + m, word)


def packed_digits(x: Lanes, at: int, stride: int, digits: int, inverse: Lanes) -> Lanes:
    """I: five digits 0, 1, 2 as a fraction of 3**5 in 256ths, rounded up, so that times 3 the next digit falls out."""
    number = lanes.full_int(0)
    for n in range(5):
        number = number * 3
        if n < digits:
            number = number + (round_away(lanes.load(x, at + stride * n) * inverse) + 1)
        number = number & 255
    return lanes.to_int(lanes.to_float(number * 256 + 242) / 243.0)


def digit(byte: Lanes, power: Lanes) -> Lanes:
    """I: the digit of a byte that `power`, a power of 3, brings to the front, less 1."""
    return ((byte * power & 255) * 3 >> 8) - 1


def decode_block(data: Lanes, _tables: Any, y: Lanes) -> None:
    """Scale times digit."""
    scale = from_half(lanes.splat16(data, SCALE))
    for begin, count, first, _ in RUNS[:2]:
        power = lanes.full_int(1)
        for n in range(5):
            for m in range(0, count, lanes.WIDTH):
                level = digit(lanes.run8(data, begin + m), power)
                lanes.write(y, first + count * n + m, lanes.to_float(level) * scale)
            power = power * 3
    for i in range(0, 16, lanes.WIDTH):
        number = lanes.numbers() + i
        n = number >> 2
        power = lanes.where(n == 0, 1, lanes.where(n == 1, 3, lanes.where(n == 2, 9, lanes.full_int(27))))
        level = digit(lanes.lookup(data, (number & 3) + FOURS), power)
        lanes.write(y, 240 + i, lanes.to_float(level) * scale)
