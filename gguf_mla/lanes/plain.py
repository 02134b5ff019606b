"""Plain lanes: a value is a numpy array of 16; every operation can be watched in a debugger.

The list of what a formula may use. F is a float32 value, I an int32 value, M a mask; Python numbers mix with F and I.

* operators: F + - * / F, -F; I + - * & | ^ << >> I (>> keeps the sign); F or I < <= > >= == != → M; M & | ~ M
* `values[index]` arrays, one row per index: `load`, `store`; `scatter` writes row I[lane] in each lane
* block bytes: `get8`, `get16`, `get32` → I, `put8`, `put16`, `put32` (little endian)
* tables, one for all lanes: `lookup`; of grid points: `gather_group4`, `gather_group8`

Where a lane carries one value of a block instead, as in `decode_block`, a formula steps by `WIDTH`:

* `run8`, `run32` → I: consecutive bytes of one block, entries of a table
* `splat8`, `splat16`, `splat32` → I: one word of one block in every lane
* `write` F to consecutive float32; `numbers` → I: 0, 1, … up to WIDTH

Where the lanes are candidates for one block's choice, as in `ggtypes.shared.grid`: `pick4` and `pick8` look up a small
table that one lane has filled, `transpose_table` prepares those tables, `least_lane` and `first_least` → int decide.
Where two blocks' candidates share the lanes, `HALF` for each, `pair_item`, `pair_run32`, `pair_least` and
`pair_first_least` do the like; `odd8` → F is what a level stands for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

WIDTH, HALF = 16, 8
Array = Any


def full(number: float) -> Array:
    """F with `number` in every lane."""
    return np.full(WIDTH, number, np.float32)


def full_int(number: int) -> Array:
    """I with `number` in every lane."""
    return np.full(WIDTH, number, np.int32)


def load(values: Array, index: int) -> Array:
    """F: row `index` of a [n, lanes] float32 array."""
    return values[index].copy()


def store(values: Array, index: int, value: Array) -> None:
    """Write F to row `index` of a [n, lanes] float32 array."""
    values[index] = value


def scatter(values: Array, index: Array, value: Array) -> None:
    """Write F, in each lane to the row that lane's I names."""
    values[index, np.arange(WIDTH)] = value


def item(values: Array, index: int, lane: int) -> Any:
    """One lane's float32 of row `index`."""
    return values[index, lane]


def set_item(values: Array, index: int, lane: int, number: float) -> None:
    """Write one lane's float32 of row `index`."""
    values[index, lane] = number


def lookup(table: Array, index: Array) -> Array:
    """F or I: `table[index]` in each lane, from a float32 or an integer table."""
    return table[index] if table.dtype == np.float32 else table[index].astype(np.int32)


def gather_group4(table: Array, point: Array, number: Array) -> Array:
    """F: value number % 4 of each lane's point, from a float32 [points * 4] table; every 4 lanes share a point."""
    return table[point * 4 + number % 4]


def gather_group8(table: Array, point: Array, number: Array) -> Array:
    """F: value number % 8 of each lane's point, from a float32 [points * 8] table; every 8 lanes share a point."""
    return table[point * 8 + number % 8]


def where(mask: Array, a: Any, b: Any) -> Array:
    """Return `a` where the mask holds, else `b`; both F or both I."""
    return np.where(mask, a, b)


def any_lane(mask: Array) -> bool:
    """Tell whether the mask holds in any lane."""
    return bool(mask.any())


def to_float(value: Array) -> Array:
    """I → F."""
    return value.astype(np.float32)


def to_int(value: Array) -> Array:
    """F → I towards zero; NaN and what does not fit give -2**31, as on x86."""
    fits = np.abs(value) < 2**31
    return np.where(fits, value, np.float32(-(2.0**31))).astype(np.int32)


def bits(value: Array) -> Array:
    """Return the bit pattern of F as I."""
    return value.view(np.int32)


def from_bits(value: Array) -> Array:
    """Return the F whose bit pattern is I."""
    return value.astype(np.int32, copy=False).view(np.float32)


def sqrt(value: Array) -> Array:
    """Square root, correctly rounded."""
    return np.sqrt(value)


def fabs(value: Array) -> Array:
    """Magnitude."""
    return np.abs(value)


def get8(data: Array, at: int) -> Array:
    """I: byte `at` of each lane's block; data uint8 [lanes, bytes]."""
    return data[:, at].astype(np.int32)


def get16(data: Array, at: int) -> Array:
    """I: the 16-bit word at byte `at` of each lane's block."""
    return get8(data, at) | get8(data, at + 1) << 8


def get32(data: Array, at: int) -> Array:
    """I: the 32-bit word at byte `at` of each lane's block."""
    return get16(data, at) | get16(data, at + 2) << 16


def put8(data: Array, at: int, value: Array) -> None:
    """Write the low 8 bits of I to byte `at` of each lane's block."""
    data[:, at] = (value & 255).astype(np.uint8)


def put16(data: Array, at: int, value: Array) -> None:
    """Write the low 16 bits of I to byte `at` of each lane's block."""
    put8(data, at, value)
    put8(data, at + 1, value >> 8)


def put32(data: Array, at: int, value: Array) -> None:
    """Write I to byte `at` of each lane's block."""
    put16(data, at, value)
    put16(data, at + 2, value >> 16)


def run8(data: Array, at: int) -> Array:
    """I: 16 consecutive bytes of one block, the first at byte `at`; data uint8 [bytes]."""
    return data[at : at + WIDTH].astype(np.int32)


def splat8(data: Array, at: int) -> Array:
    """I: byte `at` of one block, in every lane."""
    return full_int(int(data[at]))


def splat16(data: Array, at: int) -> Array:
    """I: the 16-bit word at byte `at` of one block, in every lane."""
    return full_int(int(data[at : at + 2].view("<u2")[0]))


def splat32(data: Array, at: int) -> Array:
    """I: the 32-bit word at byte `at` of one block, in every lane."""
    return full_int(int(data[at : at + 4].view("<i4")[0]))


def write(values: Array, at: int, value: Array) -> None:
    """Write F to 16 consecutive float32 of one block, the first at index `at`; values float32 [block]."""
    values[at : at + WIDTH] = value


def numbers() -> Array:
    """I: 0, 1, … 15."""
    return np.arange(WIDTH, dtype=np.int32)


def run32(table: Array, at: int) -> Array:
    """I: 16 consecutive entries of an int32 table."""
    return table[at : at + WIDTH].copy()


def transpose_table(values: Array, row: int) -> None:
    """Prepare rows row … row + 16, tables of 4 or 8 float32 per lane, for `pick4` and `pick8`; nothing to do here."""


def pick4(values: Array, row: int, lane: int, index: Array) -> Array:
    """F: entry index % 4 of the table that lane `lane` has in rows row … row + 4."""
    return values[row + (index & 3), lane]


def pick8(values: Array, row: int, lane: int, index: Array) -> Array:
    """F: entry index % 8 of the table that lane `lane` has in rows row … row + 8."""
    return values[row + (index & 7), lane]


def least_lane(value: Array) -> int:
    """Return the first lane whose value, F and not negative, is least."""
    return int(value.argmin())


def first_least(value: Array, position: Array) -> int:
    """Return the lowest position among the lanes whose value, F and not negative, is least."""
    return int(position[value == value.min()].min())


def odd8(level: Array) -> Array:
    """F: 2 l + 1 of I's low 3 bits."""
    return to_float((level & 7) * 2 + 1)


def pair_item(values: Array, index: int, lane: int) -> Array:
    """F: of row `index` lane `lane`'s number in the first half, the next lane's in the second."""
    return np.repeat(values[index, lane : lane + 2], HALF)


def pair_run32(table: Array, first: int, second: int) -> Array:
    """I: 8 consecutive entries of an int32 table in each half."""
    return np.concatenate([table[first : first + HALF], table[second : second + HALF]])


def pair_least(value: Array) -> tuple[int, int]:
    """Return, for each half, the first place whose value, F and not negative, is least."""
    return int(value[:HALF].argmin()), int(value[HALF:].argmin())


def pair_first_least(value: Array, position: Array) -> tuple[int, int]:
    """Return, for each half, the lowest position among the lanes whose value, F and not negative, is least."""
    return first_least(value[:HALF], position[:HALF]), first_least(value[HALF:], position[HALF:])
