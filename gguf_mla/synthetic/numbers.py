"""Random weights and their storage forms that are the same bytes on any machine.

Only integer arithmetic, single float32 operations and ml_dtypes' roundings: no libm, no BLAS, no torch generator. numpy
promises the stream of `PCG64` and `SeedSequence`; it does not promise that of `Generator`'s distributions, so those
stay unused.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

CHUNK = 1 << 20  # values drawn at a time
# the sum of four uniform 16-bit integers has mean 131070 and standard deviation 65536 / sqrt(3)
BELL_MEAN = np.int64(131070)
BELL_SCALE = np.float32(1.7320508 / 65536)
E4M3_MAX = np.float32(448.0)
E2M1_MAX = np.float32(6.0)
E2M1_BETWEEN = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)  # neighbours of 0, 0.5, 1, 1.5, 2, 3, 4, 6


def bell(name: str, seed: int, shape: tuple[int, ...]) -> Floats:
    """Return nearly normal float32 values (mean 0, deviation 1, |x| < 3.5) that depend on `name` and `seed` alone."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
    out = np.empty(int(np.prod(shape)), np.float32)
    for start in range(0, out.size, CHUNK):
        part = out[start : start + CHUNK]
        part[:] = _sum_of_four(bits.random_raw(part.size)) - BELL_MEAN
        part *= BELL_SCALE
    return out.reshape(shape)


def _sum_of_four(raw: NDArray[np.uint64]) -> NDArray[np.int64]:
    lanes = np.uint64(0x0000FFFF0000FFFF)
    pairs = (raw & lanes) + ((raw >> np.uint64(16)) & lanes)
    return ((pairs & np.uint64(0xFFFFFFFF)) + (pairs >> np.uint64(32))).astype(np.int64)


def to_bf16(x: Floats) -> NDArray[np.uint16]:
    """float32 → bfloat16 bits (uint16), to nearest, ties to even. No NaN."""
    return x.astype(ml_dtypes.bfloat16).view(np.uint16)


def to_e4m3(x: Floats) -> NDArray[np.uint8]:
    """float32 with |x| ≤ 448 → float8_e4m3fn bits (uint8), to nearest, ties to even."""
    return x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


def e4m3_blocks(w: Floats, block: int, *, power_of_two: bool) -> tuple[NDArray[np.uint8], Floats]:
    """float32 [M, N] → e4m3 bits [M, N] and scales [⌈M/block⌉, ⌈N/block⌉]; w ≈ bits · scale of its block."""
    rows, columns = (-(-size // block) for size in w.shape)
    padded = np.zeros((rows * block, columns * block), np.float32)
    padded[: w.shape[0], : w.shape[1]] = w
    tiles = padded.reshape(rows, block, columns, block)
    scales = np.maximum(np.abs(tiles).max(axis=(1, 3)) / E4M3_MAX, np.float32(2.0**-100))
    if power_of_two:
        scales = _next_power_of_two(scales)
    scaled = np.clip(tiles / scales[:, None, :, None], -E4M3_MAX, E4M3_MAX)
    return to_e4m3(scaled.reshape(padded.shape)[: w.shape[0], : w.shape[1]]), scales


def _next_power_of_two(x: Floats) -> Floats:
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.float32(1), np.where(mantissa == np.float32(0.5), exponent - 1, exponent)).astype(np.float32)


def to_e8m0(scales: Floats) -> NDArray[np.uint8]:
    """Powers of two as their biased exponents: byte b means 2^(b − 127)."""
    return scales.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)


def int4_groups(w: Floats, group: int) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """float32 [M, N] → integers -8 … 7 [M, N] and bfloat16 bits [M, ⌈N/group⌉]; w ≈ integer · scale of its group."""
    groups = -(-w.shape[1] // group)
    padded = np.zeros((w.shape[0], groups * group), np.float32)
    padded[:, : w.shape[1]] = w
    tiles = padded.reshape(w.shape[0], groups, group)
    bits = to_bf16(np.abs(tiles).max(axis=2) / np.float32(7.5))
    scales = bits.view(ml_dtypes.bfloat16).astype(np.float32)[:, :, None]
    integers = np.rint(np.divide(tiles, scales, out=np.zeros_like(tiles), where=scales != 0))
    return np.clip(integers, -8, 7).astype(np.int8).reshape(padded.shape)[:, : w.shape[1]], bits


def to_int32_words(integers: NDArray[np.int8]) -> NDArray[np.int32]:
    """Integers -8 … 7 [M, N] → int32 [M, ⌈N/8⌉]: each plus 8 in four bits, the first of eight in the lowest."""
    rows, cols = integers.shape
    nibbles = np.zeros((rows, -(-cols // 8), 8), np.uint32)
    nibbles.reshape(rows, -1)[:, :cols] = integers + 8
    words: NDArray[np.uint32] = np.bitwise_or.reduce(nibbles << np.arange(0, 32, 4, dtype=np.uint32), axis=2)
    return words.view(np.int32)


def mxfp4_groups(w: Floats) -> tuple[NDArray[np.uint8], Floats]:
    """float32 [M, N] → 4-bit floats, two in a byte, the first in the low half, [M, N/2], and scales [M, N/32]."""
    groups = w.reshape(len(w), -1, 32)
    scales = _next_power_of_two(np.maximum(np.abs(groups).max(axis=2) / E2M1_MAX, np.float32(2.0**-100)))
    scaled = groups / scales[:, :, None]
    codes = np.searchsorted(E2M1_BETWEEN, np.abs(scaled)).astype(np.uint8) | np.where(scaled < 0, 8, 0).astype(np.uint8)
    flat = codes.reshape(len(w), -1)
    return flat[:, ::2] | flat[:, 1::2] << 4, scales
