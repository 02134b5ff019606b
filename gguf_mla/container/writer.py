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

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as the file declares it: `shape` slowest dimension first, as numpy has it (GGUF stores the reverse)."""

    name: str
    shape: tuple[int, ...]
    type: str

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
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class FileLayout:
    """The bytes before the data, the absolute offset of every tensor, and the size of the finished file."""

    head: bytes
    offsets: tuple[int, ...]
    size: int


def lay_out(metadata: Mapping[str, Value], tensors: Sequence[TensorSpec]) -> FileLayout:
    """Encode the head for these tensors, in this order, and place their data.

    Data are aligned to `general.alignment` where the metadata have it.
    """
    alignment = int(metadata["general.alignment"].data) if "general.alignment" in metadata else ALIGNMENT
    relative, position = [], 0
    for tensor in tensors:
        relative.append(position)
        position += _padded(tensor.nbytes, alignment)
    head = b"".join(_head(metadata, tensors, relative))
    start = _padded(len(head), alignment)
    return FileLayout(head.ljust(start, b"\0"), tuple(start + offset for offset in relative), start + position)


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
        yield struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, ggtypes.by_name(tensor.type).id, offset)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _content(value: Value) -> bytes:
    if (item := value.item) is not None:
        return struct.pack("<IQ", item, len(value.data)) + _items(item, value.data)
    return _items(value.kind, [value.data])


def _items(kind: Kind, items: Sequence[Any]) -> bytes:
    if kind is Kind.STRING:
        return b"".join(map(_string, items))
    return np.asarray(items, np.dtype(STRUCT_CODES[kind]).newbyteorder("<")).tobytes()
