"""What IQ4_NL and IQ4_XS share: levels that name one of 16 unevenly spaced values, and the search for a scale.

The values come from the `gguf` package. A level is found by comparing with the 15 midpoints: near a midpoint both
distances are exact in float32, so this is the nearest value as ggml finds it, ties upwards.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.search import NOTHING, extreme

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes


@functools.cache
def tables() -> tuple[Any, ...]:
    """One table, float32 [31]: the 16 values and the 15 midpoints between them."""
    numpy = import_module("numpy")
    values = numpy.array(import_module("gguf.quants").IQ4_NL.kvalues, numpy.float32)
    return (numpy.concatenate([values, (values[1:] + values[:-1]) / 2]).astype(numpy.float32),)


def nearest_value(x: Lanes, tables: Any) -> Lanes:
    """F: the nearest of the 16 values; the last for NaN."""
    table = tables[0]
    value = lanes.full(table[0])
    for k in range(15):
        value = lanes.where(x < lanes.full(table[16 + k]), value, lanes.full(table[1 + k]))
    return value


def nearest_index(x: Lanes, tables: Any) -> Lanes:
    """F: the index of `nearest_value`."""
    index = lanes.full(0.0)
    for k in range(15):
        index = lanes.where(x < lanes.full(tables[0][16 + k]), index, 1.0 + k)
    return index


def value_sums(x: Lanes, at: int, w: Lanes, inverse: Lanes, tables: Any) -> tuple[Lanes, Lanes]:
    """Σ w q x and Σ w q² over the values q nearest to x · inverse."""
    sum_xq = sum_q2 = lanes.full(0.0)
    for i in range(32):
        value = lanes.load(x, at + i)
        near = nearest_value(inverse * value, tables)
        weighted = lanes.load(w, i) * near
        sum_xq = sum_xq + weighted * value
        sum_q2 = sum_q2 + weighted * near
    return sum_xq, sum_q2


def fit_uneven(x: Lanes, at: int, w: Lanes, tables: Any) -> Lanes:
    """Return the scale of 32 values with the least weighted squared error, of 16 tried; 0 if all are zero."""
    largest, value = extreme(x, at, 32)
    empty = largest < NOTHING
    value, first = lanes.where(empty, 1.0, value), lanes.full(tables[0][0])
    sum_xq, sum_q2 = value_sums(x, at, w, 1.0 / (-value / first), tables)
    scale = lanes.where(sum_q2 > 0.0, sum_xq / sum_q2, 0.0)
    best = scale * sum_xq
    for step in range(-7, 8):
        sum_xq, sum_q2 = value_sums(x, at, w, (first + lanes.full(step)) / value, tables)
        better = (sum_q2 > 0.0) & (sum_xq * sum_xq > best * sum_q2)
        scale = lanes.where(better, sum_xq / sum_q2, scale)
        best = lanes.where(better, scale * sum_xq, best)
    return lanes.where(empty, 0.0, scale)


def store_indices(x: Lanes, at: int, inverse: Lanes, tables: Any, levels: Lanes, to: int) -> None:
    """Levels 0 … 15, F, of 32 values."""
    for i in range(32):
        lanes.store(levels, to + i, nearest_index(inverse * lanes.load(x, at + i), tables))
