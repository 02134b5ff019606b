"""How ggml packs levels of a few bits: bit planes over runs of bytes.

Byte l of a run holds bits of the levels l, l + stride, l + 2 stride, …, the first in its lowest bits: nibbles for Q4_0
(stride 16) or Q4_K (stride 32), pairs of bits for Q2_K, single bits for the fifth bits of Q5_K.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import lanes
from gguf_mla.lanes.binding import unbound, variant

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes


def level_word(level: Lanes) -> Lanes:
    """F → I whose low 22 bits are the level's: adding 1.5 · 2**23 leaves them at the end of the fraction."""
    return lanes.bits(level + 12582912.0)


def kept_word(level: Lanes) -> Lanes:
    """F → I that `from_bits` has put in its place; the low 22 bits count."""
    return lanes.bits(level)


word_of = unbound("word_of")  # what `variant` gives


def _pack_planes(
    levels: Lanes, at: int, stride: int, planes: int, bits: int, shift: int, out: Lanes, to: int, count: int
) -> None:
    """Write a run of `count` bytes, a multiple of 4, from levels in rows at …: `bits` bits of each, above `shift`."""
    mask = (1 << bits) - 1
    for first in range(0, count, 4):
        word = lanes.full_int(0)
        for k in range(planes):
            for byte in range(4):
                level = word_of(lanes.load(levels, at + stride * k + first + byte))
                word = word | (level >> shift & mask) << bits * k + 8 * byte
        lanes.put32(out, to + first, word)


def _pack_bits(levels: Lanes, at: int, count: int, bits: int, shift: int, out: Lanes, to: int) -> None:
    """Write `count` levels one after the other, `bits` bits of each, above `shift`, in words of 32 bits."""
    mask, per_word = (1 << bits) - 1, 32 // bits
    for first in range(0, count, per_word):
        word = lanes.full_int(0)
        for k in range(per_word):
            word = word | (word_of(lanes.load(levels, at + first + k)) >> shift & mask) << bits * k
        lanes.put32(out, to + first * bits // 8, word)


# From levels that are F, and from I in the place of F.
pack_planes, pack_kept_planes = variant(_pack_planes, word_of=level_word), variant(_pack_planes, word_of=kept_word)
pack_bits, pack_kept_bits = variant(_pack_bits, word_of=level_word), variant(_pack_bits, word_of=kept_word)


def plane(data: Lanes, at: int, k: int, bits: int) -> Lanes:
    """I: plane k of a run of bytes of one block."""
    return lanes.run8(data, at) >> bits * k & (1 << bits) - 1


def run_bits(data: Lanes, at: int, first: int) -> Lanes:
    """I: bits first, first + 1, … of a 32-bit word of one block, one per lane."""
    return lanes.splat32(data, at) >> lanes.numbers() + first & 1
