"""GGUF files: what we write, an independent reader reads; what is not sound, ours refuses in a sentence."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_mla.container.reader import open_gguf
from gguf_mla.container.values import Kind, Value, array, boolean, f32, string, u32
from gguf_mla.container.writer import ALIGNMENT, TensorSpec, lay_out
from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

RANGES = {
    Kind.U8: (0, 2**8 - 1), Kind.I8: (-(2**7), 2**7 - 1), Kind.U16: (0, 2**16 - 1), Kind.I16: (-(2**15), 2**15 - 1),
    Kind.U32: (0, 2**32 - 1), Kind.I32: (-(2**31), 2**31 - 1), Kind.U64: (0, 2**64 - 1),
    Kind.I64: (-(2**63), 2**63 - 1),
}  # fmt: skip
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


def contents(kind: Kind) -> st.SearchStrategy[object]:
    if kind in RANGES:
        return st.integers(*RANGES[kind])
    if kind in (Kind.F32, Kind.F64):
        return st.floats(width=32 if kind is Kind.F32 else 64, allow_nan=False)
    return st.booleans() if kind is Kind.BOOL else TEXT


SCALAR_KINDS = [kind for kind in Kind if kind is not Kind.ARRAY]
SCALARS = st.sampled_from(SCALAR_KINDS).flatmap(lambda kind: contents(kind).map(lambda data: Value(kind, data)))
ARRAYS = st.sampled_from(SCALAR_KINDS).flatmap(
    lambda kind: st.lists(contents(kind), max_size=5).map(lambda data: array(kind, data))
)
METADATA = st.dictionaries(TEXT.filter(lambda key: key and key != "general.alignment"), SCALARS | ARRAYS, max_size=6)
SHAPES = st.lists(st.integers(1, 5), max_size=3).map(tuple)
TENSORS = st.lists(st.tuples(SHAPES, st.sampled_from([("F32", 3), ("BF16", 5), ("Q8_0", 64)])), max_size=6)


def write(path: Path, metadata: dict[str, Value], tensors: list[TensorSpec], fill: int = 7) -> Path:
    layout = lay_out(metadata, tensors)
    data = bytearray(layout.head.ljust(layout.size, bytes([fill])))
    path.write_bytes(data)
    return path


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    metadata = {
        "general.architecture": string("deepseek2"),
        "a": u32(1),
        "list": array(Kind.STRING, ["x", "yz"]),
        "n": array(Kind.I32, [1, 2]),
    }
    return write(
        tmp_path / "sound.gguf", metadata, [TensorSpec("t.weight", (2, 64), "Q8_0"), TensorSpec("v", (3,), "F32")]
    )


@given(METADATA, TENSORS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_written_is_read_back(
    tmp_path: Path, metadata: dict[str, Value], tensors: list[tuple[tuple[int, ...], tuple[str, int]]]
) -> None:
    specs = [TensorSpec(f"t{i}", (*shape, cols), kind) for i, (shape, (kind, cols)) in enumerate(tensors)]
    layout = lay_out(metadata, specs)
    file = open_gguf(write(tmp_path / "x.gguf", metadata, specs))
    assert list(file.metadata) == list(metadata)
    for key, value in metadata.items():
        assert (file.values[key].kind, file.values[key].item) == (value.kind, value.item)
        assert file.metadata[key] == value.data
    assert [(t.name, t.shape, t.type, t.offset) for t in file.tensors.values()] == [
        (spec.name, spec.shape, spec.type, offset) for spec, offset in zip(specs, layout.offsets, strict=True)
    ]
    assert all(offset % ALIGNMENT == 0 for offset in layout.offsets)
    assert file.size == layout.size


def test_ggufs_own_reader_agrees(sound: Path) -> None:
    reader = gguf.GGUFReader(sound)
    assert reader.fields["a"].contents() == 1
    assert reader.fields["list"].contents() == ["x", "yz"]
    assert [(t.name, list(t.shape), t.tensor_type.name, t.data_offset) for t in reader.tensors] == [
        (t.name, list(t.shape[::-1]), t.type, t.offset) for t in open_gguf(sound).tensors.values()
    ]


def test_rows_are_read_by_position(tmp_path: Path) -> None:
    layout = lay_out({}, [TensorSpec("t", (2, 3, 4), "F32")])
    values = np.arange(24, dtype=np.float32)
    path = tmp_path / "x.gguf"
    path.write_bytes(layout.head + values.tobytes())
    tensor = open_gguf(path).tensors["t"]
    assert tensor.read(1, 3).view(np.float32).tolist() == values.reshape(6, 4)[1:3].tolist()
    assert open_gguf(path)["t"].values().tolist() == values.reshape(2, 3, 4).tolist()


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_damaged_head_is_read_or_refused_but_never_crashes(sound: Path, data: st.DataObject) -> None:
    content = bytearray(sound.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = sound.with_name("damaged.gguf")
    damaged.write_bytes(content)
    try:
        file = open_gguf(damaged)
        for value in file.metadata.values():
            str(value)
    except InputError as error:
        assert str(damaged) in str(error)


def test_every_truncation_is_refused(sound: Path) -> None:
    content = sound.read_bytes()
    end = max(t.offset + t.nbytes for t in open_gguf(sound).tensors.values())
    cut = sound.with_name("cut.gguf")
    for length in range(end):
        cut.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.gguf"):
            open_gguf(cut)


def edited(path: Path, position: int, code: str, value: int) -> Path:
    content = bytearray(path.read_bytes())
    struct.pack_into("<" + code, content, position, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("position", "code", "value", "words"),
    [
        (0, "I", 0x46554746, "not a GGUF file"),
        (4, "I", 1, "version"),
        (4, "I", 0x03000000, "big-endian"),
        (8, "Q", 2**40, "more tensors than fit"),
        (16, "Q", 2**60, "more metadata entries than fit"),
        (24, "Q", 2**50, "a name that is too long"),
    ],
)
def test_impossible_counts_are_refused_before_anything_is_allocated(
    sound: Path, position: int, code: str, value: int, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        open_gguf(edited(sound, position, code, value))


def test_overlapping_tensors_are_refused(sound: Path) -> None:
    content = sound.read_bytes()
    last_offset = content.index(b"\x01\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00") + 16
    with pytest.raises(InputError, match=r"v: overlaps the data of t\.weight"):
        open_gguf(edited(sound, last_offset, "Q", 0))


@pytest.mark.parametrize(
    ("name", "words"), [("missing.gguf", "No such file"), ("empty.gguf", "empty"), (".", "directory")]
)
def test_what_is_no_file_is_said(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(InputError, match=words):
        open_gguf(tmp_path / name)


def test_a_repeated_key_is_refused(tmp_path: Path) -> None:
    layout = lay_out({"ab": boolean(True), "cd": f32(1)}, [])
    path = tmp_path / "x.gguf"
    path.write_bytes(layout.head.replace(b"cd", b"ab"))
    with pytest.raises(InputError, match="'ab' twice"):
        open_gguf(path)


def test_a_stated_alignment_is_kept(tmp_path: Path) -> None:
    specs = [TensorSpec("a", (3,), "F32"), TensorSpec("b", (5,), "F32")]
    file = open_gguf(write(tmp_path / "x.gguf", {"general.alignment": u32(128)}, specs))
    assert file.alignment == 128
    assert all(tensor.offset % 128 == 0 for tensor in file.tensors.values())
