"""One lane in plain Python: a value is a numpy scalar. What a CUDA thread computes, for numba's CUDA simulator.

Arrays of values are float32 [n] and blocks uint8 [bytes]: a thread has a block of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

WIDTH = HALF = 1


def full(number: float) -> Any:
    """F."""
    return np.float32(number)


def full_int(number: int) -> Any:
    """I."""
    return np.int32(number)


def load(values: Any, index: int) -> Any:
    """F: value `index`."""
    return values[index]


def store(values: Any, index: int, value: Any) -> None:
    """Write F to value `index`."""
    values[index] = value


def scatter(values: Any, index: Any, value: Any) -> None:
    """Write F to the value that I names."""
    values[index] = value


def item(values: Any, index: int, lane: int) -> Any:
    """Return value `index`."""
    del lane
    return values[index]


def set_item(values: Any, index: int, lane: int, number: float) -> None:
    """Write value `index`."""
    del lane
    values[index] = number


def lookup(table: Any, index: Any) -> Any:
    """F or I: `table[index]`."""
    return table[index] if table.dtype == np.float32 else np.int32(table[index])


def gather_group4(table: Any, point: Any, number: Any) -> Any:
    """F: value number % 4 of a point."""
    return table[point * 4 + number % 4]


def gather_group8(table: Any, point: Any, number: Any) -> Any:
    """F: value number % 8 of a point."""
    return table[point * 8 + number % 8]


def where(mask: Any, a: Any, b: Any) -> Any:
    """Return `a` where the mask holds, else `b`; a Python number takes the other's kind."""
    kind = type(a) if isinstance(a, np.generic) else type(b)
    return kind(a if mask else b)


def any_lane(mask: Any) -> bool:
    """Tell whether the mask holds."""
    return bool(mask)


def to_float(value: Any) -> Any:
    """I → F."""
    return np.float32(value)


def to_int(value: Any) -> Any:
    """F → I towards zero; NaN and what does not fit give -2**31."""
    return np.int32(value) if abs(value) < 2**31 else np.int32(-(2**31))


def bits(value: Any) -> Any:
    """Return the bit pattern of F as I."""
    return value.view(np.int32)


def from_bits(value: Any) -> Any:
    """Return the F whose bit pattern is I."""
    return np.int32(value).view(np.float32)


def sqrt(value: Any) -> Any:
    """Square root, correctly rounded."""
    return np.sqrt(value)


def fabs(value: Any) -> Any:
    """Magnitude."""
    return np.abs(value)


def get8(data: Any, at: int) -> Any:
    """I: byte `at` of the block."""
    return np.int32(data[at])


def get16(data: Any, at: int) -> Any:
    """I: the 16-bit word at byte `at`."""
    return get8(data, at) | get8(data, at + 1) << 8


def get32(data: Any, at: int) -> Any:
    """I: the 32-bit word at byte `at`."""
    return get16(data, at) | get16(data, at + 2) << 16


def put8(data: Any, at: int, value: Any) -> None:
    """Write the low 8 bits of I."""
    data[at] = value & 255


def put16(data: Any, at: int, value: Any) -> None:
    """Write the low 16 bits of I."""
    put8(data, at, value)
    put8(data, at + 1, value >> 8)


def put32(data: Any, at: int, value: Any) -> None:
    """Write I."""
    put16(data, at, value)
    put16(data, at + 2, value >> 16)


def run32(table: Any, at: int) -> Any:
    """I: entry `at` of an int32 table."""
    return table[at]


def write(values: Any, at: int, value: Any) -> None:
    """Write F to value `at`."""
    values[at] = value


def numbers() -> Any:
    """I: 0, the only lane's number."""
    return np.int32(0)


def transpose_table(values: Any, row: int) -> None:
    """Prepare tables for `pick4` and `pick8`; nothing to do for one lane."""


def pick4(values: Any, row: int, lane: int, index: Any) -> Any:
    """F: entry index % 4 of the table at value `row`."""
    del lane
    return values[row + (index & 3)]


def pick8(values: Any, row: int, lane: int, index: Any) -> Any:
    """F: entry index % 8 of the table at value `row`."""
    del lane
    return values[row + (index & 7)]


def least_lane(value: Any) -> int:
    """Return the only lane's number."""
    del value
    return 0


def first_least(value: Any, position: Any) -> int:
    """Return the only lane's position."""
    del value
    return int(position)


def odd8(level: Any) -> Any:
    """F: 2 l + 1 of I's low 3 bits."""
    return np.float32((level & 7) * 2 + 1)


def pair_item(values: Any, index: int, lane: int) -> Any:
    """F: value `index`."""
    del lane
    return values[index]


def pair_run32(table: Any, first: int, second: int) -> Any:
    """I: entry `first` of an int32 table."""
    del second
    return table[first]


def pair_least(value: Any) -> tuple[int, int]:
    """Return the only place, twice."""
    del value
    return 0, 0


def pair_first_least(value: Any, position: Any) -> tuple[int, int]:
    """Return the only position, twice."""
    del value
    return int(position), int(position)


run8 = splat8 = get8
splat16, splat32 = get16, get32
