"""What Q2_K, Q4_K and Q5_K share: 256 values in sub-blocks, each with a scale and a minimum that are levels themselves.

All three fit every sub-block on its own, round the fitted scales and minima to levels of the super-block's two float16
scales, and then choose the values' levels again by the rounded scales.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.affine import exact_level, guarded_level
from gguf_mla.ggtypes.shared.search import mean_square
from gguf_mla.lanes.binding import unbound, variant

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

# Rows of scratch: what each sub-block's fit found, the levels of its scale and minimum, room for one sub-block's work.
SCALES, MINIMA, INVERSES, OFFSETS, TOTALS, SCALE_LEVELS, MINIMUM_LEVELS = range(0, 112, 16)
WEIGHTS, TRIAL, LEVELS = 112, 144, 176
SCRATCH = LEVELS + 256

level_of = unbound("level_of")  # as the fit rounded


def store_even_weights(x: Lanes, at: int, count: int, scratch: Lanes) -> None:
    """Weights without importance: root mean square plus magnitude, so that large values count more."""
    root = lanes.sqrt(mean_square(x, at, count, 1.0))
    for i in range(count):
        lanes.store(scratch, WEIGHTS + i, root + lanes.fabs(lanes.load(x, at + i)))


def keep_fit(scratch: Lanes, j: int, scale: Lanes, minimum: Lanes, inverse: Lanes, offset: Lanes) -> None:
    """Remember what the fit of sub-block j found; minima are kept positive, as they are stored."""
    lanes.store(scratch, SCALES + j, scale)
    lanes.store(scratch, MINIMA + j, -minimum)
    lanes.store(scratch, INVERSES + j, inverse)
    lanes.store(scratch, OFFSETS + j, offset)


def _choose_levels(x: Lanes, scratch: Lanes, size: int, top: int, scale: Lanes, minimum: Lanes) -> None:
    """Levels of all 256 values by the rounded scales, F in rows LEVELS …; where a scale rounded to 0, the fit's own."""
    for j in range(256 // size):
        step = scale * lanes.load(scratch, SCALE_LEVELS + j)
        offset = minimum * lanes.load(scratch, MINIMUM_LEVELS + j)
        inverse, low = lanes.load(scratch, INVERSES + j), lanes.load(scratch, OFFSETS + j)
        for i in range(size):
            value = lanes.load(x, size * j + i)
            level = exact_level((value + offset) / step, top)
            lanes.store(
                scratch, LEVELS + size * j + i, lanes.where(step == 0.0, level_of(inverse * (value - low), top), level)
            )


choose_levels = variant(_choose_levels, level_of=guarded_level)
choose_levels_exact = variant(_choose_levels, level_of=exact_level)


def limit_levels(scratch: Lanes, row: int, count: int, top: int) -> None:
    """Limit levels in rows row … to `top`; a negative scale's level, which wrapped to 255, becomes `top` too."""
    for j in range(count):
        level = lanes.load(scratch, row + j)
        lanes.store(scratch, row + j, lanes.where(level > 1.0 * top, 1.0 * top, level))


def pack_scales(scratch: Lanes, out: Lanes, to: int) -> None:
    """Eight scale levels and eight minimum levels of 6 bits in 12 bytes, as Q4_K and Q5_K have them.

    The first four of each fill the low 6 bits of bytes 0 … 7; of the last four, low nibbles share bytes 8 … 11 and high
    bits top up bytes 0 … 7. Levels above 63 (a fit may go wrong) spoil what shares their byte, as in ggml; the levels
    left in scratch are those a reader will see.
    """
    first = second = third = lanes.full_int(0)
    for j in range(4):
        s0, s1 = _level(scratch, SCALE_LEVELS + j), _level(scratch, SCALE_LEVELS + j + 4)
        m0, m1 = _level(scratch, MINIMUM_LEVELS + j), _level(scratch, MINIMUM_LEVELS + j + 4)
        s_byte, m_byte = (s0 | s1 >> 4 << 6) & 255, (m0 | m1 >> 4 << 6) & 255
        nibbles = s1 & 15 | (m1 & 15) << 4
        first, second, third = first | s_byte << 8 * j, second | m_byte << 8 * j, third | nibbles << 8 * j
        lanes.store(scratch, SCALE_LEVELS + j, lanes.to_float(s_byte & 63))
        lanes.store(scratch, MINIMUM_LEVELS + j, lanes.to_float(m_byte & 63))
        lanes.store(scratch, SCALE_LEVELS + j + 4, lanes.to_float(s1 & 15 | s_byte >> 6 << 4))
        lanes.store(scratch, MINIMUM_LEVELS + j + 4, lanes.to_float(m1 & 15 | m_byte >> 6 << 4))
    lanes.put32(out, to, first)
    lanes.put32(out, to + 4, second)
    lanes.put32(out, to + 8, third)


def _level(scratch: Lanes, row: int) -> Lanes:
    return lanes.to_int(lanes.load(scratch, row))


def scale_level(data: Lanes, at: int, j: int) -> Lanes:
    """F: scale level j of the 12 bytes `pack_scales` wrote."""
    if j < 4:
        return lanes.to_float(lanes.splat8(data, at + j) & 63)
    return lanes.to_float(lanes.splat8(data, at + j + 4) & 15 | lanes.splat8(data, at + j - 4) >> 6 << 4)


def minimum_level(data: Lanes, at: int, j: int) -> Lanes:
    """F: minimum level j of the 12 bytes `pack_scales` wrote."""
    if j < 4:
        return lanes.to_float(lanes.splat8(data, at + j + 4) & 63)
    return lanes.to_float(lanes.splat8(data, at + j + 4) >> 4 | lanes.splat8(data, at + j) >> 6 << 4)
