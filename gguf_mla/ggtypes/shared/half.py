"""float16 scales: the conversions of ggml's `ggml_compute_fp32_to_fp16` and back, on bit patterns.

Both are the public-domain conversions of Marat Dukhan's FP16 library: scaling by powers of two lets the float32
adder do the rounding (to nearest, ties to even).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import lanes

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

UP, DOWN = 2.0**112, 2.0**-110  # together 4: what a half cannot hold overflows to infinity on the way


def to_half(value: Lanes) -> Lanes:
    """F → I: the float16 bit pattern, rounded to nearest even; NaN becomes ±0x7E00."""
    word = lanes.bits(value)
    magnitude = word & 0x7FFFFFFF
    exponent = magnitude & 0x7F800000
    exponent = lanes.where(exponent < 0x38800000, 0x38800000, exponent)
    rounded = lanes.bits(lanes.from_bits(exponent + 0x07800000) + (lanes.fabs(value) * UP) * DOWN)
    number = (rounded >> 13 & 0x7C00) + (rounded & 0x0FFF)
    return (word >> 16 & 0x8000) | lanes.where(magnitude > 0x7F800000, 0x7E00, number)


def from_half(word: Lanes) -> Lanes:
    """I → F: the value of a float16 bit pattern, exact."""
    magnitude = word & 0x7FFF
    normal = lanes.from_bits((magnitude << 13) + 0x70000000) * 2.0**-112
    small = lanes.from_bits(magnitude | 0x3F000000) - 0.5
    value = lanes.bits(lanes.where(magnitude < 0x0400, small, normal))
    return lanes.from_bits(value | (word & 0x8000) << 16)


def rounded_to_half(value: Lanes) -> Lanes:
    """F → F: the value a float16 scale will be read back as."""
    return from_half(to_half(value))
