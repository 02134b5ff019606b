"""What MXFP4 and NVFP4 share: 4-bit floats of two exponent bits and one fraction bit, doubled to integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import lanes

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

DOUBLED = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0)


def doubled(code: Lanes) -> Lanes:
    """I → I: 0, 1, 2, 3, 4, 6, 8, 12 and their negatives for codes 0 … 15; there is no negative zero."""
    low = code & 7
    value = lanes.where(low < 4, low, (low & 1 | 2) << (low >> 1) - 1)
    return lanes.where(code > 7, 0 - value, value)


def largest_magnitude(x: Lanes, at: int, count: int) -> Lanes:
    """Largest magnitude of `count` values."""
    largest = lanes.full(0.0)
    for i in range(count):
        magnitude = lanes.fabs(lanes.load(x, at + i))
        largest = lanes.where(magnitude > largest, magnitude, largest)
    return largest


def store_codes(x: Lanes, at: int, count: int, scale: Lanes, codes: Lanes, to: int) -> None:
    """Codes, F, of the values with the least |value · scale - x|, the first of equals."""
    for i in range(count):
        value = lanes.load(x, at + i)
        best, code = lanes.fabs(scale * DOUBLED[0] - value), lanes.full(0.0)
        for candidate in range(1, 16):
            error = lanes.fabs(scale * DOUBLED[candidate] - value)
            better = error < best
            best, code = lanes.where(better, error, best), lanes.where(better, 1.0 * candidate, code)
        lanes.store(codes, to + i, code)
