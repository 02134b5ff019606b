"""The head of a GGUF file and where every tensor's data goes, computed before a byte is written.

Layout (GGUF version 3, little endian): magic, version, tensor count, metadata count, metadata, tensor infos, padding,
then each tensor's data at a multiple of the alignment. Source: the GGUF specification.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla import ggtypes
from gguf_mla.container.values import STRUCT_CODES, Kind, Value
from gguf_mla.errors import InputError
from gguf_mla.files import bounds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import PurePath

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
MAX_ENTRIES = 1 << 16  # of the metadata
MAX_ITEMS = 1 << 22  # of all lists in the metadata together
MAX_HEAD = 1 << 26  # bytes
_LENGTH = struct.Struct("<Q").pack
PIECE_BYTES = 1 << 20  # of a tensor of a foreign type, which has no rows that anybody knows


@dataclass(frozen=True, slots=True)
class Foreign:
    """A type that only another program knows, by its number, and how many bytes a tensor of it has.

    The bytes are those up to the next tensor, padding included: only the program that made them knows better.
    """

    id: int
    nbytes: int

    @property
    def pieces(self) -> int:
        """How many pieces of PIECE_BYTES they are moved in."""
        return -(-self.nbytes // PIECE_BYTES)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as the file declares it: `shape` slowest dimension first, as numpy has it (GGUF stores the reverse).

    `foreign` is there for a type that only other programs know.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    foreign: Foreign | None = None

    @property
    def rows(self) -> int:
        """How many rows of `shape[-1]` values there are."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """How many bytes one encoded row takes."""
        return ggtypes.by_name(self.type).row_bytes(self.shape[-1])

    @property
    def nbytes(self) -> int:
        """How many bytes the tensor's data takes, without padding."""
        return self.rows * self.row_bytes if self.foreign is None else self.foreign.nbytes

    @property
    def type_id(self) -> int:
        """The number of its type."""
        return ggtypes.by_name(self.type).id if self.foreign is None else self.foreign.id


@dataclass(frozen=True)
class FileLayout:
    """The bytes before the data, the absolute offset of every tensor, and the size of the finished file."""

    head: bytes
    offsets: tuple[int, ...]
    size: int


def lay_out(metadata: Mapping[str, Value], tensors: Sequence[TensorSpec]) -> FileLayout:
    """Encode the head for these tensors, in this order, and place their data.

    Data are aligned to `general.alignment` where the metadata have it. InputError for what no reader would take.
    """
    alignment = alignment_of(metadata)
    _check(metadata, tensors)
    relative, position = [], 0
    for tensor in tensors:
        relative.append(position)
        position += _padded(tensor.nbytes, alignment)
    head = b"".join(_head(metadata, tensors, relative))
    _check_at_most(len(head), MAX_HEAD, "bytes in its head")
    start = _padded(len(head), alignment)
    return FileLayout(head.ljust(start, b"\0"), tuple(start + offset for offset in relative), start + position)


def alignment_of(metadata: Mapping[str, Value], file: PurePath | None = None) -> int:
    """Return what the offsets of data are multiples of; InputError for a number that cannot be it."""
    value = metadata.get("general.alignment")
    alignment = ALIGNMENT if value is None else value.data
    if type(alignment) is not int or not 0 < alignment <= bounds.ALIGNMENT or alignment % 8:
        expected = f"a positive multiple of 8, at most {bounds.ALIGNMENT}"
        raise InputError("has an impossible general.alignment", file=file, expected=expected, found=alignment)
    return alignment


def _check(metadata: Mapping[str, Value], tensors: Sequence[TensorSpec]) -> None:
    """Raise InputError for a head that our own reader would refuse."""
    names = [*metadata, *(tensor.name for tensor in tensors)]
    texts = [value.data for value in metadata.values() if value.kind is Kind.STRING]
    lengths = [len(name.encode()) for name in names]
    _check_at_most(max(lengths, default=0), bounds.NAME_BYTES, "bytes in a name")
    _check_at_most(sum(lengths) + sum(len(text.encode()) for text in texts), bounds.TEXT_BYTES, "bytes of text")
    _check_at_most(len(metadata), MAX_ENTRIES, "metadata entries")
    _check_at_most(sum(len(value.data) for value in metadata.values() if value.item is not None), MAX_ITEMS, "items")
    _check_at_most(len(tensors), bounds.TENSORS, "tensors")
    for tensor in tensors:
        bounds.bounded(tensor.shape[-1], bounds.ROW_VALUES, "the length of a row", tensor=tensor.name)
    _check_at_most(sum(math.prod(tensor.shape[:-2]) for tensor in tensors), bounds.SLICES, "experts and heads")


def _check_at_most(count: int, most: int, what: str) -> None:
    if count > most:
        raise InputError(f"the output would have more {what} than any model", expected=f"at most {most}", found=count)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _head(metadata: Mapping[str, Value], tensors: Sequence[TensorSpec], offsets: Sequence[int]) -> Iterable[bytes]:
    yield MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata))
    for key, value in metadata.items():
        yield _string(key)
        yield struct.pack("<I", value.kind)
        yield _content(value)
    for tensor, offset in zip(tensors, offsets, strict=True):
        dims = tensor.shape[::-1]
        yield _string(tensor.name)
        yield struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.type_id, offset)


def _string(text: str) -> bytes:
    data = text.encode()
    return _LENGTH(len(data)) + data


def _content(value: Value) -> bytes:
    if (item := value.item) is not None:
        return struct.pack("<IQ", item, len(value.data)) + _items(item, value.data)
    return _items(value.kind, [value.data])


def _items(kind: Kind, items: Sequence[Any]) -> bytes:
    if kind is Kind.STRING:  # a vocabulary and its merges are 260,000 of them
        return b"".join([_LENGTH(len(data)) + data for data in map(str.encode, items)])
    return np.asarray(items, np.dtype(STRUCT_CODES[kind]).newbyteorder("<")).tobytes()
