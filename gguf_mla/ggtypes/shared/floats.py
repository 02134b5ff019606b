"""F32, F16 and BF16 among each other on the CPU: numpy, in pieces that stay in the cache.

The same conversions stand as formulas over lanes in their types' files, for kernels and for reading; here numpy does
them so that a process that only moves floats about need not wait for numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
PIECE = 1 << 14
SOURCES: dict[str, np.dtype[Any]] = {  # how values of a format lie in an array; BF16 as bit patterns
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
}
EXPONENTS: dict[str, Any] = {"F32": np.uint32(0x7F800000), "F16": np.uint16(0x7C00), "BF16": np.uint16(0x7F80)}
CERTAIN = 2.0**10  # no type overflows up to here: half-precision scales reach 65504, 60 times more than a search asks
MAGNITUDES: dict[str, Any] = {"F32": np.uint32(0x7FFFFFFF), "F16": np.uint16(0x7FFF), "BF16": np.uint16(0x7FFF)}
CERTAIN_WORDS: dict[str, Any] = {"F32": np.uint32(0x44800000), "F16": np.uint16(0x6400), "BF16": np.uint16(0x4480)}
WORDS: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.uint32), "F16": np.dtype(np.uint16), "BF16": np.dtype(np.uint16)}


def finite(x: Array, source: str) -> Array:
    """Mask of the values that are neither NaN nor infinite."""
    mask: Array = (x.view(WORDS[source]) & EXPONENTS[source]) != EXPONENTS[source]
    return mask


def certain(x: Array, source: str) -> bool:
    """Tell whether every value is a number that every type can hold: neither NaN nor infinite nor above CERTAIN."""
    largest = (x.view(WORDS[source]) & MAGNITUDES[source]).max(initial=0)
    return bool(largest <= CERTAIN_WORDS[source])


def to_float32(x: Array, source: str, out: Array | None = None) -> Array:
    """Values of any source format as float32, in `out` if it is given; otherwise float32 itself is not copied."""
    if source == "BF16":
        bits = None if out is None else out.view(np.uint32)
        return np.left_shift(x, 16, out=bits, dtype=np.uint32).view(np.float32)
    if out is None:
        return x.astype(np.float32, copy=False)
    np.copyto(out, x)
    return out


def _to_bf16(x: Array, out: Array) -> None:
    """Round float32 to bfloat16 bit patterns: to nearest, ties to even; NaN is quieted (ggml's rule)."""
    word = x.view(np.uint32)
    rounded = word >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += word
    rounded >>= np.uint32(16)
    np.copyto(out, rounded, casting="unsafe")
    if not (magnitude := word & np.uint32(0x7FFFFFFF)).max(initial=0) <= 0x7F800000:
        nan = magnitude > 0x7F800000
        out[nan] = (word[nan] >> 16 | 64).astype(np.uint16)


def _to_f16(x: Array, out: Array) -> None:
    """Round float32 to float16: to nearest, ties to even; NaN becomes ±0x7E00 (ggml's rule)."""
    with np.errstate(over="ignore"):
        np.copyto(out.view(np.float16), x, casting="unsafe")
    nan = np.isnan(x)
    if nan.any():
        out[nan] = (x.view(np.uint32)[nan] >> 16 & 0x8000 | 0x7E00).astype(np.uint16)


def _convert(x: Array, source: str, target: str, out: Array) -> None:
    values = to_float32(x, source)
    if target == "F32":
        np.copyto(out, values)
    else:
        (_to_bf16 if target == "BF16" else _to_f16)(values, out)


def encode(x: Array, source: str, target: str, out: Array, check: bool) -> int:
    """Convert flat `x` into flat bytes; return -1, or a position before what `check` found not to be `certain`."""
    words = out.view(np.float32 if target == "F32" else np.uint16)
    for start in range(0, x.size, PIECE):
        piece = x[start : start + PIECE]
        if check and not certain(piece, source):
            return start
        if source == target:
            np.copyto(words[start : start + PIECE], piece.view(words.dtype))
        else:
            _convert(piece, source, target, words[start : start + PIECE])
    return -1
