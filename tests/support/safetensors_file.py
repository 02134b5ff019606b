"""A safetensors writer for tests: tensors made one at a time, and headers that may be wrong on purpose."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

WIDTH = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: its header entry and how its bytes are made when they are needed."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * WIDTH[self.dtype]


def shards(tensors: Sequence[Stored], shard_bytes: int | None) -> Iterator[list[Stored]]:
    """Group tensors in their order; a shard ends when it exceeds `shard_bytes` (None: one shard)."""
    group: list[Stored] = []
    size = 0
    for tensor in tensors:
        group.append(tensor)
        size += tensor.nbytes
        if shard_bytes is not None and size > shard_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def write(path: Path, tensors: Sequence[Stored]) -> None:
    """Write one file as the safetensors library would: header padded to 8 bytes, data in header order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    with path.open("wb") as file:
        file.write(header_bytes(entries))
        for tensor in tensors:
            data = np.ascontiguousarray(tensor.make())
            assert data.nbytes == tensor.nbytes, tensor.name
            file.write(data.reshape(-1).view(np.uint8).data)


def header_bytes(entries: dict[str, Any]) -> bytes:
    """The length field and the JSON header."""
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The entries of a file's header, and where its data begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a file's header in place of the old one; the data stay as they are."""
    entries, start = read_header(path)
    change(entries)
    path.write_bytes(header_bytes(entries) + path.read_bytes()[start:])
