"""A second reader of GGUF files, for tests: the one under test is never its own judge.

It holds what a comparison needs: metadata values with their types, and for each tensor its shape, type and bytes.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

TYPES = {0: "F32", 1: "F16", 8: "Q8_0", 26: "I32", 30: "BF16", 39: "MXFP4"}
BLOCKS = {  # values, bytes
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "I32": (1, 4), "MXFP4": (32, 17),
}  # fmt: skip
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
VALUE_NAMES = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64", "f64")
STRING, ARRAY = 8, 9
SHORT_ARRAY = 16  # longer ones are compared by digest


@dataclass(frozen=True)
class TensorRecord:
    ne: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


class GgufFile:
    """A GGUF file, mapped: `metadata` maps key → (type, value), `tensors` maps name → `TensorRecord`."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, self.version, tensor_count, key_count = struct.unpack_from("<4sIQQ", self._map, 0)
        assert magic == b"GGUF", magic
        self._at = 24
        self.metadata: dict[str, tuple[str, Any]] = {}
        for _ in range(key_count):
            key = self._string()
            assert key not in self.metadata, f"{key} is there twice"
            self.metadata[key] = self._value(self._scalar("I"))
        records = [self._tensor_info() for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", ("u32", 32))[1]
        self.data_start = -(-self._at // alignment) * alignment
        self.tensors = {name: self._record(ne, kind, offset) for name, ne, kind, offset in records}
        assert len(self.tensors) == tensor_count, "a tensor is there twice"
        assert all(t.offset % alignment == 0 for t in self.tensors.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()

    def bytes_of(self, name: str) -> bytes:
        record = self.tensors[name]
        return self._map[record.offset : record.offset + record.nbytes]

    def digest(self, name: str) -> str:
        return hashlib.sha256(self.bytes_of(name)).hexdigest()[:16]

    def comparable_metadata(self) -> dict[str, list[Any]]:
        """Everything, as JSON can hold it: long arrays as their length and the digest of their bytes."""
        return {key: [kind, value] for key, (kind, value) in self.metadata.items()}

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._map, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        self._at += length
        return self._map[self._at - length : self._at].decode()

    def _value(self, kind: int) -> tuple[str, Any]:
        if kind == STRING:
            return "str", self._string()
        if kind == ARRAY:
            return self._array()
        return VALUE_NAMES[kind], self._scalar(SCALARS[kind])

    def _array(self) -> tuple[str, Any]:
        kind, count = self._scalar("I"), self._scalar("Q")
        start = self._at
        if kind in SCALARS and count > SHORT_ARRAY:
            self._at += count * struct.calcsize("<" + SCALARS[kind])
        elif count > SHORT_ARRAY:
            for _ in range(count):
                (length,) = struct.unpack_from("<Q", self._map, self._at)
                self._at += 8 + length
        else:
            return f"arr[{VALUE_NAMES[kind]}]", [self._value(kind)[1] for _ in range(count)]
        digest = hashlib.sha256(self._map[start : self._at]).hexdigest()[:16]
        return f"arr[{VALUE_NAMES[kind]}]", f"{count} values, sha256 {digest}"

    def _tensor_info(self) -> tuple[str, tuple[int, ...], str, int]:
        name = self._string()
        ne = tuple(self._scalar("Q") for _ in range(self._scalar("I")))
        return name, ne, TYPES[self._scalar("I")], self._scalar("Q")

    def _record(self, ne: tuple[int, ...], kind: str, offset: int) -> TensorRecord:
        values, size = BLOCKS[kind]
        assert ne[0] % values == 0, (ne, kind)
        record = TensorRecord(ne, kind, self.data_start + offset, int(np.prod(ne)) // values * size)
        assert record.offset + record.nbytes <= len(self._map), (ne, kind, offset)
        return record
