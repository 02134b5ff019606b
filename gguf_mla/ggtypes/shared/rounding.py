"""The ways ggml rounds a float32 to an integer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import lanes

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes


def round_away(value: Lanes) -> Lanes:
    """F → I: to nearest, halves away from zero, C's `roundf`; NaN and infinity give -2**31 as x86's conversion does."""
    magnitude = lanes.fabs(value)
    whole = lanes.to_int(magnitude)
    rest = magnitude - lanes.to_float(whole)
    up = (rest >= 0.5) & (whole >= 0)
    rounded = lanes.where(up, whole + 1, whole)
    return lanes.where(value < 0.0, 0 - rounded, rounded)


def nearest(value: Lanes) -> Lanes:
    """F → I: to nearest, ties to even, by ggml's `nearest_int`: beyond ±2**22 it is as wrong as there."""
    return (lanes.bits(value + 12582912.0) & 0x007FFFFF) - 0x00400000


def clamp(value: Lanes, low: int, high: int) -> Lanes:
    """I limited to low … high."""
    value = lanes.where(value > high, high, value)
    return lanes.where(value < low, low, value)


def snap(value: Lanes) -> Lanes:
    """F → F: to nearest, ties to even, for magnitudes up to 2**22; cheaper than `nearest`."""
    return (value + 12582912.0) - 12582912.0


def signed_byte(value: Lanes) -> Lanes:
    """I → I: the low 8 bits as a signed number, C's conversion to int8."""
    return value << 24 >> 24
