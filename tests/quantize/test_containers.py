"""Files as people have them: split in every shape, with other programs' types, in raw pieces, on poor file systems."""

from __future__ import annotations

import errno
import json
import os
import struct
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

from gguf_mla.container.reader import open_gguf
from gguf_mla.container.splits import open_gguf_parts, part_paths
from gguf_mla.container.writer import PIECE_BYTES
from gguf_mla.files import platform
from tests.quantize.test_noteworthy import model
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def run(*arguments: Any, status: int = 0) -> str:
    answer = gguf_mla(*arguments)
    assert answer.status == status, answer.output
    return answer.output


# ------------------------------------------------------------------------------------------------------------- splits


def split(directory: Path, counts: list[int]) -> Path:
    """A model in parts of so many tensors, as gguf-split and gguf-py write them; the first may have only metadata."""
    directory.mkdir(exist_ok=True)
    random, number = np.random.default_rng(0), iter(range(sum(counts)))
    paths = part_paths(directory / "s.gguf", len(counts))
    for at, (path, count) in enumerate(zip(paths, counts, strict=True)):
        writer = gguf.GGUFWriter(path, "deepseek2" if at == 0 else "")
        if at == 0:
            writer.add_block_count(1)
            writer.add_head_count(2)
        else:
            writer.kv_data[0].clear()
        writer.add_uint16("split.no", at)
        writer.add_uint16("split.count", len(counts))
        writer.add_int32("split.tensors.count", sum(counts))
        for _ in range(count):
            writer.add_tensor(f"blk.0.ffn_{next(number)}.weight", random.standard_normal((4, 256)).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths[0]


SHAPES = {"metadata first": [0, 3, 2], "metadata in two": [0, 5], "an empty one within": [2, 0, 3], "last": [3, 2, 0]}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["Q8_0", "COPY"])
def test_keep_split_writes_the_same_parts(tmp_path: Path, name: str, kind: str) -> None:
    first = split(tmp_path / "in", SHAPES[name])
    run("quantize", first, tmp_path / "out.gguf", kind, "--keep-split", "--quiet")
    out = open_gguf_parts(part_paths(tmp_path / "out.gguf", len(SHAPES[name]))[0])
    assert [list(file.tensors) for file in out.files] == [list(file.tensors) for file in open_gguf_parts(first).files]


@pytest.mark.parametrize("name", SHAPES)
def test_parts_of_every_shape_are_merged(tmp_path: Path, name: str) -> None:
    first = split(tmp_path / "in", SHAPES[name])
    run("merge", first, tmp_path / "out.gguf", "--quiet")
    theirs = open_gguf_parts(first).tensors
    found = open_gguf(tmp_path / "out.gguf").tensors
    assert {n: t.read().tobytes() for n, t in found.items()} == {n: t.read().tobytes() for n, t in theirs.items()}


def test_inspect_shows_all_of_a_split_model_or_says_which_part(tmp_path: Path) -> None:
    first = split(tmp_path, [0, 3, 2])
    whole = run("inspect", first)
    assert "parts         all 3 parts of a split model" in whole
    assert "in 5 tensors" in whole
    assert len(json.loads(run("inspect", first, "--json"))["model"]["tensors"]) == 5
    second = part_paths(first, 3)[1]
    assert "parts         part 2 of 3 of a split model" in run("inspect", second)
    second.unlink()
    assert "parts         part 1 of 3 of a split model" in run("inspect", first)
    assert json.loads(run("inspect", first, "--json"))["model"]["split"] == "part 1 of 3 of a split model"


# ------------------------------------------------------------------------------------------------------ foreign types


def foreign(path: Path, sizes: dict[str, tuple[int, tuple[int, ...], int]], *, last_padding: bool = True) -> Path:
    """A file whose tensors NAME have a type by number, a shape and so many bytes, random ones."""
    random = np.random.default_rng(1)
    keys = [(b"general.architecture", 8, struct.pack("<Q", 9) + b"deepseek2")]
    keys += [(b"deepseek2.block_count", 4, struct.pack("<I", 1))]
    keys += [(b"deepseek2.attention.head_count", 4, struct.pack("<I", 2))]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(sizes), len(keys))
    for key, kind, value in keys:
        head += struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value
    data = b""
    for name, (number, shape, size) in sizes.items():
        dims = shape[::-1]
        head += struct.pack("<Q", len(name)) + name.encode()
        head += struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number, len(data))
        data += random.bytes(size) if number else np.arange(size // 4, dtype=np.float32).tobytes()
        data += b"\0" * (-len(data) % 32)
    unpadded = len(data) if last_padding else len(data) - (-list(sizes.values())[-1][2] % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data[:unpadded])
    return path


# type 139 has 144 bytes for 256 values, type 144 4 + 136 · n/256 for a row, 137 and 250 whatever they like
FOREIGN = {
    "blk.0.ffn_up.weight": (139, (3, 256), 3 * 144),
    "blk.0.ffn_norm.weight": (0, (256,), 1024),
    "blk.0.ffn_down_exps.weight": (144, (2, 5, 512), 10 * (4 + 272)),
    "blk.0.ffn_gate.weight": (250, (4, 96), 100),
}


def bytes_of(path: Path) -> dict[str, bytes]:
    found = open_gguf_parts(path).tensors
    sizes = {name: size for name, (_, _, size) in FOREIGN.items()}
    return {name: t.file.read(t.offset, sizes[name]).tobytes() for name, t in found.items()}


def ids(path: Path) -> dict[str, int]:
    return {name: t.foreign.id if t.foreign else 0 for name, t in open_gguf_parts(path).tensors.items()}


@pytest.mark.parametrize("last_padding", [True, False])
def test_bytes_of_foreign_types_are_moved(tmp_path: Path, last_padding: bool) -> None:
    path = foreign(tmp_path / "m.gguf", FOREIGN, last_padding=last_padding)
    said = run("inspect", path, "--tensors")
    assert "type 139 (IQ4_K of ik_llama.cpp)" in said
    assert "type 250" in said
    run("split", path, tmp_path / "s.gguf", "--split-max-tensors", 1, "--quiet")
    run("merge", part_paths(tmp_path / "s.gguf", 4)[0], tmp_path / "merged.gguf", "--quiet")
    run("quantize", path, tmp_path / "copy.gguf", "COPY", "--quiet")
    for out in ("merged.gguf", "copy.gguf"):
        assert bytes_of(tmp_path / out) == bytes_of(path)
        assert ids(tmp_path / out) == ids(path)


def test_a_large_foreign_tensor_is_moved_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2 * PIECE_BYTES + 4711
    path = foreign(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": (139, (size * 256 // 144 // 256, 256), size)})
    monkeypatch.setattr(platform, "copy_range", lambda *_: 0)
    run("merge", path, tmp_path / "out.gguf", "--quiet")
    assert (tmp_path / "out.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("command", [("quantize", "Q8_0"), ("quantize", "Q4_K_M", "--allow-requantize")])
def test_what_would_have_to_be_decoded_is_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = foreign(tmp_path / "m.gguf", FOREIGN)
    said = run(command[0], path, tmp_path / "out.gguf", *command[1:], status=2)
    assert "blk.0.ffn_up.weight: is of type 139 (IQ4_K of ik_llama.cpp), which only the program" in said
    assert "COPY, split and merge move its bytes" in said


@pytest.mark.parametrize("size", [1, 5000])
def test_data_of_no_possible_size_are_damage(tmp_path: Path, size: int) -> None:
    path = foreign(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": (139, (1000, 256), size)})
    assert "has an unknown tensor type" in run("inspect", path, status=2)


# --------------------------------------------------------------------------------------------------------- raw pieces

PIECES: dict[str, Callable[[str], str]] = {
    "mradermacher's": lambda name: f"{name}.part1of2",
    "numbered": lambda name: f"{name}.part2of2",
    "split's letters": lambda name: f"{name}-split-a",
    "split's own": lambda name: f"{name}.aa",
    "7-Zip's": lambda name: f"{name}.001",
}


@pytest.mark.parametrize("which", PIECES)
@pytest.mark.parametrize("command", ["inspect", "quantize"])
def test_raw_pieces_are_to_be_joined(tmp_path: Path, which: str, command: str) -> None:
    whole = model(tmp_path / "m.gguf").read_bytes()
    first = "2of2" not in which and which != "numbered"
    path = tmp_path / PIECES[which]("m.gguf")
    path.write_bytes(whole[: len(whole) // 2] if first else whole[len(whole) // 2 :])
    options = [tmp_path / "out.gguf", "Q8_0"] if command == "quantize" else []
    said = run(command, path, *options, status=2)
    assert "of a file that was cut at any byte" in said
    assert "cat m.gguf" in said
    assert "> m.gguf" in said
    assert "ownload" not in said


def test_parts_joined_with_cat_are_noticed(tmp_path: Path) -> None:
    first = split(tmp_path / "in", [2, 3])
    both = tmp_path / "both.gguf"
    both.write_bytes(b"".join(part.read_bytes() for part in part_paths(first, 2)))
    said = run("inspect", both, status=2)
    assert "several GGUF files joined end to end" in said
    assert "gguf-mla merge" in said


def test_two_whole_files_joined_with_cat_are_noticed(tmp_path: Path) -> None:
    whole = model(tmp_path / "m.gguf").read_bytes()
    (tmp_path / "both.gguf").write_bytes(whole * 2)
    assert "joined end to end" in run("quantize", tmp_path / "both.gguf", tmp_path / "o.gguf", "Q8_0", status=2)


def test_a_pointer_of_git_lfs_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")
    assert "git lfs pull" in run("inspect", path, status=2)


# -------------------------------------------------------------------------------------------------- poor file systems


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES])
def test_a_directory_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    path, fsync = model(tmp_path / "m.gguf"), os.fsync

    def refusing(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112
            raise OSError(refusal, os.strerror(refusal))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", refusing)
    run("quantize", path, tmp_path / "out.gguf", "Q8_0", "--quiet")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["m.gguf", "out.gguf"]
    run("quantize", path, tmp_path / "out.gguf", "Q8_0", "--quiet", "--overwrite")


def test_a_system_without_copies_locks_and_links_writes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model(tmp_path / "m.gguf")
    run("merge", path, tmp_path / "a.gguf", "--quiet")

    def refusing(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    for name in ("copy_file_range", "posix_fadvise", "link", "posix_fallocate"):
        monkeypatch.setattr(os, name, refusing)
    monkeypatch.setattr("fcntl.flock", refusing)
    run("merge", path, tmp_path / "b.gguf", "--quiet")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
