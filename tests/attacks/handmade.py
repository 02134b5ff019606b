"""Files made by hand to break a reader: each is a name, what the refusal says, and how it is written."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INDEX = "model.safetensors.index.json"
TB = 1 << 40
U8, U32, F32, BOOL, STRING, ARRAY = 0, 4, 6, 7, 8, 9


@dataclass(frozen=True)
class Attack:
    """`write` makes the file or directory at a path; a reader must say `words`."""

    name: str
    words: str
    write: Callable[[Path], object]


# ----------------------------------------------------------------------------------------------------------- GGUF


def text(content: str | bytes) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(data)) + data


def entry(key: str | bytes, kind: int, content: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + content


def array(item: int, count: int, content: bytes = b"") -> bytes:
    return struct.pack("<IQ", item, count) + content


def tensor(name: str | bytes, dims: tuple[int, ...], kind: int = 0, offset: int = 0, count: int | None = None) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims) if count is None else count, *dims)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def gguf(
    entries: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    data: bytes = bytes(256),
    size: int | None = None,
    entry_count: int | None = None,
    tensor_count: int | None = None,
    version: int = 3,
) -> Callable[[Path], None]:
    """A file of these parts; `size` makes it larger by a hole, the counts may lie."""

    def write(path: Path) -> None:
        counts = [
            len(part) if stated is None else stated
            for part, stated in ((tensors, tensor_count), (entries, entry_count))
        ]
        head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)
        path.write_bytes(head + bytes(-len(head) % 32) + data)
        if size is not None:
            os.truncate(path, size)

    return write


GGUF = (
    Attack("tensor count beyond the file", "more tensors than fit", gguf(tensor_count=1 << 62)),
    Attack("tensor count for a file with a hole", "more tensors than fit", gguf(tensor_count=1 << 32, size=TB)),
    Attack("entry count for a file with a hole", "metadata entries than fit", gguf(entry_count=1 << 36, size=TB)),
    Attack("entry count that wraps", "metadata entries than fit", gguf(entry_count=(1 << 64) - 1)),
    Attack("no dimensions", "number of dimensions", gguf(tensors=(tensor("t", ()),))),
    Attack("five dimensions", "number of dimensions", gguf(tensors=(tensor("t", (2,) * 5),))),
    Attack("2^32 - 1 dimensions", "number of dimensions", gguf(tensors=(tensor("t", (4,), count=(1 << 32) - 1),))),
    Attack("a dimension of zero", "impossible shape", gguf(tensors=(tensor("t", (4, 0)),))),
    Attack("dimensions whose product wraps", "impossible shape", gguf(tensors=(tensor("t", (1 << 32, 1 << 32)),))),
    Attack("bytes that wrap", "ends too early", gguf(tensors=(tensor("t", (1 << 61,)),))),
    Attack("an offset that wraps", "ends too early", gguf(tensors=(tensor("t", (4,), offset=(1 << 64) - 32),))),
    Attack("an offset behind the end", "ends too early", gguf(tensors=(tensor("t", (4,), offset=1 << 20),))),
    Attack("an offset that is not aligned", "not aligned", gguf(tensors=(tensor("t", (4,), offset=4),))),
    Attack("overlapping tensors", "overlaps", gguf(tensors=(tensor("a", (32,)), tensor("b", (32,), offset=32)))),
    Attack("the same tensor twice", "occurs twice", gguf(tensors=(tensor("t", (4,)), tensor("t", (4,), offset=32)))),
    Attack("an unknown tensor type", "unknown tensor type", gguf(tensors=(tensor("t", (4,), kind=4_000_000_000),))),
    Attack("half a block", "t: ", gguf(tensors=(tensor("t", (33,), kind=8),))),
    Attack("a long tensor name", "name that is too long", gguf(tensors=(tensor(b"x" * 100_000, (4,)),))),
    Attack("a name that is no text", "not UTF-8", gguf(tensors=(tensor(b"\xff\xfe", (4,)),))),
    Attack("the same key twice", "'k' twice", gguf((entry("k", U8, b"\1"), entry("k", U8, b"\2")))),
    Attack("a long key", "name that is too long", gguf((entry("k" * 100_000, U8, b"\1"),))),
    Attack("an unknown value type", "unknown type", gguf((entry("k", 13, b"\1" * 8),))),
    Attack("a string in a hole", "larger head", gguf((entry("k", STRING, struct.pack("<Q", TB // 2)),), size=TB)),
    Attack("a string that wraps", "too early", gguf((entry("k", STRING, struct.pack("<Q", (1 << 64) - 8)),))),
    Attack("numbers in a hole", "than fit", gguf((entry("k", ARRAY, array(F32, 1 << 36)),), size=TB)),
    Attack("booleans in a hole", "than fit", gguf((entry("k", ARRAY, array(BOOL, 1 << 23)),), size=TB)),
    Attack("strings in a hole", "than fit", gguf((entry("k", ARRAY, array(STRING, 1 << 36)),), size=TB)),
    Attack(
        "many arrays in a hole",
        "than fit",
        gguf(tuple(entry(f"k{i}", ARRAY, array(U8, 1 << 20, bytes(1 << 20))) for i in range(9)), size=TB),
    ),
    Attack("a string count that wraps", "than fit", gguf((entry("k", ARRAY, array(STRING, 1 << 61)),))),
    Attack(
        "a string in an array that wraps",
        "too early",
        gguf((entry("k", ARRAY, array(STRING, 2, struct.pack("<Q", (1 << 64) - 9) + bytes(8))),)),
    ),
    Attack("an array of arrays", "array of arrays", gguf((entry("k", ARRAY, array(ARRAY, 2, array(U8, 1) * 2)),))),
    Attack("an alignment of zero", "alignment", gguf((entry("general.alignment", U32, bytes(4)),))),
    Attack("an alignment of seven", "alignment", gguf((entry("general.alignment", U32, b"\7\0\0\0"),))),
    Attack("an alignment that is text", "alignment", gguf((entry("general.alignment", STRING, text("32")),))),
    Attack(
        "an alignment beyond the file",
        "alignment",
        gguf((entry("general.alignment", U32, b"\0\0\0\x80"),), (tensor("t", (4,)),)),
    ),
    Attack("another byte order", "big-endian", gguf(version=3 << 24)),
    Attack("a version of the future", "version", gguf(version=4)),
    Attack("nothing", "empty", lambda path: path.touch()),
    Attack("four bytes", "too early", lambda path: path.write_bytes(b"GGUF")),
    Attack("a pickle", "not a GGUF file", lambda path: path.write_bytes(b"\x80\x04\x95" + bytes(99))),
    Attack("a pipe", "not a regular file", os.mkfifo),
    Attack("a device", "not a regular file", lambda path: path.symlink_to("/dev/zero")),
    Attack("a link to itself", "cannot be read", lambda path: path.symlink_to(path)),
)

# ----------------------------------------------------------------------------------------------------- safetensors


def shard(header: Any, data: bytes = bytes(64), *, length: int | None = None, size: int | None = None) -> Any:
    """A shard with this header, as an object or as text; `length` is what it says of itself, `size` makes a hole."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()

    def write(path: Path) -> None:
        path.write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + data)
        if size is not None:
            os.truncate(path, size)

    return write


def stored(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS = (
    Attack("a header beyond the file", "longer than it can be", shard({}, length=1 << 40)),
    Attack("a header length that wraps", "longer than it can be", shard({}, length=(1 << 64) - 8)),
    Attack("a header as large as a hole", "longer than it can be", shard({}, length=1 << 36, size=TB)),
    Attack("nothing", "at least 8 bytes", lambda path: path.touch()),
    Attack("a list", "not a JSON object", shard([])),
    Attack("deep nesting", "nested too deeply", shard(b"[" * 100_000)),
    Attack("a million empty lists", "larger than that of any model", shard(b"[" + b"[]," * 1_000_000 + b"[]]")),
    Attack("objects by the million", "larger than that of any model", shard(b"[" + b'{"a":1},' * 600_000 + b"1]")),
    Attack("numbers by the million", "larger than that of any model", shard(b"[" + b"1e1," * 2_000_000 + b"1]")),
    Attack("half a million objects", "not a JSON object", shard(b"[" + b'{"a":1},' * 500_000 + b"1]")),
    Attack("a million numbers", "not a JSON object", shard(b"[" + b"1e1," * 1_000_000 + b"1]")),
    Attack("a number of 5000 digits", "not valid JSON", shard(b'{"t": %s}' % (b"9" * 5000))),
    Attack("a name twice", "'t' occurs twice", shard(b'{"t": 1, "t": 2}')),
    Attack("other encodings", "not valid JSON", shard('{"t": 1}'.encode("utf-16"))),
    Attack("a wrapping shape", "contradict its shape", shard({"t": stored([1 << 62, 4], 0, 0)})),
    Attack("a shape beyond any number", "1205 digits", shard({"t": stored([1 << 4000], 0, 64)})),
    Attack("a shape beyond any file", "contradict its shape", shard({"t": stored([1 << 120], 0, 64)})),
    Attack("thirty dimensions", "contradict its shape", shard({"t": stored([2] * 30, 0, 64)})),
    Attack("a thousand dimensions", "malformed", shard({"t": stored([2] * 1000, 0, 64)})),
    Attack("a negative size", "malformed", shard({"t": stored([-16], 0, 64)})),
    Attack("a fraction", "malformed", shard({"t": stored([16.0], 0, 64)})),
    Attack("true as a size", "malformed", shard({"t": stored([True] * 4, 0, 4)})),
    Attack("offsets the wrong way", "malformed", shard({"t": stored([16], 64, 0)})),
    Attack("an offset that wraps", "leaves a hole", shard({"t": stored([16], (1 << 64) - 64, 1 << 64)})),
    Attack("three offsets", "malformed", shard({"t": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64, 64]}})),
    Attack("no entry", "malformed", shard({"t": None})),
    Attack("a type that is a list", "unknown dtype", shard({"t": stored([16], 0, 64, ["F32"])})),
    Attack("overlapping tensors", "overlaps", shard({"a": stored([8], 0, 32), "b": stored([12], 16, 64)})),
    Attack("data nobody names", "no tensor names", shard({"t": stored([8], 0, 32)})),
    Attack("a hole between tensors", "leaves a hole", shard({"a": stored([4], 0, 16), "b": stored([4], 48, 64)})),
    Attack("a hole before the first", "leaves a hole", shard({"a": stored([4], 48, 64)})),
    Attack("a pipe", "not a regular file", os.mkfifo),
)

# ----------------------------------------------------------------------------------------------------- checkpoints


def checkpoint(index: Any = None, config: Any = None, **files: Callable[[Path], object]) -> Callable[[Path], None]:
    """A directory with one sound shard, an index and a configuration that may be anything."""

    def write(path: Path) -> None:
        path.mkdir()
        shard({"t": stored([16], 0, 64)})(path / "a.safetensors")
        for name, content in ((INDEX, index), ("config.json", config or {})):
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (path / name).write_bytes(data)
        for name, make in files.items():
            (path / name).unlink(missing_ok=True)
            make(path / name)

    return write


def linked(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def placed(shard_name: Any, name: str = "t") -> dict[str, Any]:
    return {"weight_map": {name: shard_name}}


CHECKPOINTS = (
    Attack("a path upwards", "outside the directory", checkpoint(placed("../a.safetensors"))),
    Attack("an absolute path", "outside the directory", checkpoint(placed("/etc/passwd"))),
    Attack("a path through a child", "outside the directory", checkpoint(placed("x/../a.safetensors"))),
    Attack("a path of another system", "outside the directory", checkpoint(placed("..\\a.safetensors"))),
    Attack("the parent itself", "outside the directory", checkpoint(placed(".."))),
    Attack("the directory itself", "outside the directory", checkpoint(placed("."))),
    Attack("a name with a zero", "missing", checkpoint(placed("a\0.safetensors"))),
    Attack("no name", "missing", checkpoint(placed(""))),
    Attack("a number as a shard", "outside the directory", checkpoint(placed(7))),
    Attack("a list as the map", "no weight_map", checkpoint({"weight_map": ["t"]})),
    Attack("a tensor that is not there", "does not hold it", checkpoint(placed("a.safetensors", "u"))),
    Attack("a shard that is a device", "missing", checkpoint(placed("b"), b=linked("/dev/zero"))),
    Attack("a shard that is a pipe", "missing", checkpoint(placed("b"), b=os.mkfifo)),
    Attack(
        "a shard that is a text",
        "longer than it can be",
        checkpoint(placed("b"), b=linked("/etc/passwd")),
    ),
    Attack("a shard that is a loop", "missing", checkpoint(placed("b"), b=lambda path: path.symlink_to(path))),
    Attack("a nested index", "nested too deeply", checkpoint(b'{"a":' * 100_000)),
    Attack("an index of a terabyte", "larger than that", checkpoint(**{INDEX: gguf(size=TB)})),
    Attack("a configuration that is a pipe", "not a regular file", checkpoint(**{"config.json": os.mkfifo})),
    Attack("a list as quantization", "cannot be read", checkpoint(config={"quantization_config": [1]})),
)
