"""Typed metadata values of a GGUF file.

GGUF stores every metadata value with its type, and readers refuse a value of another type, so a plan keeps the two
together. Source of the numbering: the GGUF specification, "gguf_metadata_value_type".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


QUANTIZATION_VERSION = 2  # general.quantization_version: the version of ggml's block formats


class Kind(IntEnum):
    """The type tag of a metadata value."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


STRUCT_CODES = {
    Kind.U8: "B", Kind.I8: "b", Kind.U16: "H", Kind.I16: "h", Kind.U32: "I", Kind.I32: "i",
    Kind.F32: "f", Kind.BOOL: "?", Kind.U64: "Q", Kind.I64: "q", Kind.F64: "d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Value:
    """A metadata value: its type, its content, and for an array the type of its items."""

    kind: Kind
    data: Any
    item: Kind | None = None


def u32(value: int) -> Value:
    """Return an unsigned 32-bit integer."""
    return Value(Kind.U32, int(value))


def f32(value: float) -> Value:
    """Return a 32-bit float."""
    return Value(Kind.F32, float(value))


def boolean(value: bool) -> Value:
    """Return a truth value."""
    return Value(Kind.BOOL, bool(value))


def string(value: str) -> Value:
    """Return a UTF-8 string."""
    return Value(Kind.STRING, str(value))


def array(item: Kind, values: Sequence[Any]) -> Value:
    """Return an array whose items all have the type `item`."""
    return Value(Kind.ARRAY, values, item)
