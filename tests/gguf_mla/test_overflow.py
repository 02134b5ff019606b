"""A weight that the wanted type cannot hold is refused by row and column; what it can hold is never refused."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_mla import codec, ggtypes
from gguf_mla.codec.encoding import Encoding, encodings
from gguf_mla.codec.rows import BEYOND_SCALES
from gguf_mla.errors import RangeError
from gguf_mla.ggtypes.shared import floats

NAMES = [name for name in ggtypes.types() if name != "F32"]
WAYS = [
    pytest.param(way, id=f"{way.type.name}-{way.formula}") for name in NAMES for way in encodings(ggtypes.by_name(name))
]
WIDE = ["BF16", "MXFP4"]
SHAPES = ("one value", "all equal", "alternating", "growing")


def encode(way: Encoding, x: np.ndarray, *, check: bool = True) -> np.ndarray:
    importance = np.linspace(0.1, 2, x.shape[1], dtype=np.float32) if way.weighted else None
    return codec.encode(x, way.type.name, importance=importance, search=way.search, check=check)


def rows(shape: str, largest: float, block: int) -> np.ndarray:
    """Two rows of two blocks; the last block of row 1 has `largest` as its largest magnitude, the others are small."""
    cols = max(block, 16) * 2
    x = np.full((2, cols), 0.5, np.float32)
    at = np.arange(cols // 2)
    pattern = {
        "one value": np.where(at == 3, largest, 0.25),
        "all equal": np.full(at.shape, -largest),
        "alternating": np.where(at % 2, largest, -largest),
        "growing": largest * (at + 1) / len(at),
    }[shape]
    x[1, cols // 2 :] = pattern.astype(np.float32)
    return x


def is_held(way: Encoding, x: np.ndarray) -> bool:
    """The truth: what was encoded without a question is read back as numbers."""
    return bool(np.isfinite(codec.decode(encode(way, x, check=False), way.type.name)).all())


def boundary(way: Encoding, shape: str) -> float | None:
    """The largest magnitude, to the last bit, that is held in such a block; None if all are that scales reach."""
    block = way.type.block
    low, high = (int(np.float32(v).view(np.uint32)) for v in (floats.CERTAIN, BEYOND_SCALES))

    def held(word: int) -> bool:
        return is_held(way, rows(shape, float(np.uint32(word).view(np.float32)), block))

    if held(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if held(middle) else (low, middle)
    return float(np.uint32(low).view(np.float32))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS)
def test_the_largest_that_is_held_is_taken_and_the_next_is_refused(way: Encoding, shape: str) -> None:
    largest = boundary(way, shape)
    if largest is None:
        return
    assert largest > 60 * floats.CERTAIN, "CERTAIN is not certain enough"
    x = rows(shape, largest, way.type.block)
    assert np.array_equal(encode(way, x), encode(way, x, check=False))
    above = rows(shape, float(np.nextafter(np.float32(largest), np.float32(np.inf))), way.type.block)
    with pytest.raises(RangeError, match=rf"row 1, column \d+ is too large for {way.type.name}") as refused:
        encode(way, above)
    assert abs(above[1, refused.value.column]) == abs(above).max()


@pytest.mark.parametrize("value", [1e15, 1e30, -1e30, np.finfo(np.float32).max])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", [way for way in WAYS if way.values[0].type.name not in WIDE])
def test_what_no_scale_reaches_is_refused_even_where_it_would_become_zero(
    way: Encoding, shape: str, value: float
) -> None:
    with pytest.raises(RangeError, match=r"row 1, column \d+ is too large"):
        encode(way, rows(shape, value, way.type.block))


@pytest.mark.parametrize("name", WIDE)
def test_exponents_as_wide_as_those_of_float32_hold_nearly_all(name: str) -> None:
    x = np.full((2, 64), 1e37, np.float32)
    assert np.allclose(codec.decode(codec.encode(x, name), name), x, rtol=0.3)
