"""Checksums: those we write are sha256sum's, those of the hub are found where it keeps them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from gguf_mla.errors import InputError
from gguf_mla.files import checksums
from gguf_mla.sources import hub_cache
from tests.support import hub
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def written(tmp_path: Path) -> Path:
    out = tmp_path / "out.gguf"
    assert gguf_mla("convert", hub.BUNDLED, out, "--checksums", "--quiet").status == 0
    return out


def test_sha256sum_agrees(written: Path) -> None:
    check = ["sha256sum", "--check", "--strict", "out.gguf.sha256"]
    assert subprocess.run(check, cwd=written.parent, check=False, capture_output=True).returncode == 0
    answer = gguf_mla("inspect", written, "--verify")
    assert answer.status == 0
    assert "as " in answer.output


def test_a_changed_bit_is_found(written: Path) -> None:
    with written.open("r+b") as file:
        file.seek(3_000_000)
        file.write(b"\x01")
    answer = gguf_mla("inspect", written, "--verify")
    assert answer.status == 1
    assert "has changed: its SHA-256 is" in answer.output


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no checksum to compare"), (b"", "holds no checksum"), (b"\xff" * 99, "holds no")]
)
def test_a_checksum_that_is_missing_or_unreadable_is_said(written: Path, content: bytes | None, words: str) -> None:
    note = written.with_name("out.gguf.sha256")
    note.unlink()
    if content is not None:
        note.write_bytes(content)
    answer = gguf_mla("inspect", written, "--verify")
    assert answer.status == 2
    assert words in answer.output


def test_a_new_file_without_checksum_removes_the_old_ones(written: Path) -> None:
    assert gguf_mla("convert", hub.BUNDLED, written, "--overwrite", "--quiet", "--type", "F16").status == 0
    assert not written.with_name("out.gguf.sha256").exists()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(params=["cache", "local directory"])
def downloaded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The bundled checkpoint as huggingface_hub leaves it."""
    directory = tmp_path / "models--owner--name/snapshots/0123abcd"
    blobs, notes = tmp_path / "models--owner--name/blobs", directory / ".cache/huggingface/download"
    for folder in (blobs, notes):
        folder.mkdir(parents=True)
    for file in hub.BUNDLED.iterdir():
        large = file.suffix == ".safetensors"
        name = digest(file) if large else hashlib.sha1(file.read_bytes()).hexdigest()
        if request.param == "cache":
            shutil.copyfile(file, blobs / name)
            (directory / file.name).symlink_to(os.path.relpath(blobs / name, directory))
        else:
            shutil.copyfile(file, directory / file.name)
            (notes / f"{file.name}.metadata").write_text(f"0123abcd\n{name}\n1700000000.5\n")
    return directory


def test_a_download_is_compared_with_the_hubs_digests(downloaded: Path, tmp_path: Path) -> None:
    command = ("convert", downloaded, tmp_path / "out.gguf", "--verify-source", "--quiet")
    assert gguf_mla(*command).status == 0
    shard = downloaded / "model-00002-of-000002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1000] ^= 1
    shard.resolve().write_bytes(data)
    answer = gguf_mla(*command, "--overwrite", "--no-resume")
    assert answer.status == 2
    assert f"{shard}: is not the file that the hub has (expected SHA-256 " in answer.output


def test_files_that_do_not_come_from_the_hub_cannot_be_verified(tmp_path: Path) -> None:
    answer = gguf_mla("convert", hub.BUNDLED, tmp_path / "out.gguf", "--verify-source")
    assert answer.status == 2
    assert "nothing to compare with" in answer.output


def test_progress_counts_every_byte(downloaded: Path) -> None:
    seen: list[int] = []
    shards = sorted(downloaded.glob("*.safetensors"))
    hub_cache.verify(shards, seen.append)
    assert sum(seen) == sum(shard.stat().st_size for shard in shards)


@pytest.mark.parametrize("text", ["", "0123abcd\n", "0123abcd\nnot a digest\n1\n"])
def test_a_strange_note_is_no_digest(tmp_path: Path, text: str) -> None:
    notes = tmp_path / ".cache/huggingface/download"
    notes.mkdir(parents=True)
    (notes / "a.safetensors.metadata").write_text(text)
    with pytest.raises(InputError, match="nothing to compare with"):
        hub_cache.verify([tmp_path / "a.safetensors"])


def test_what_takes_a_notes_place_at_the_last_instant_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note, looked = tmp_path / "m.gguf.sha256", checksums.is_note
    note.write_text(f"{'0' * 64}  m.gguf\n")

    def swapped(path: Path) -> bool:
        found = looked(path)
        path.write_text("a stranger's")
        return found

    monkeypatch.setattr(checksums, "is_note", swapped)
    checksums.remove(note)
    assert note.read_text() == "a stranger's"
    assert [path.name for path in tmp_path.iterdir()] == [note.name]


def test_a_note_that_a_killed_run_has_put_aside_goes_and_a_strangers_file_stays(tmp_path: Path) -> None:
    note, aside = tmp_path / "m.gguf.sha256", tmp_path / ".m.gguf.sha256.outdated"
    aside.write_text(f"{'0' * 64}  m.gguf\n")
    checksums.remove(note)
    assert not aside.exists()
    note.write_text(f"{'0' * 64}  m.gguf\n")
    aside.write_text("a stranger's")
    with pytest.raises(InputError, match="something else has it"):
        checksums.remove(note)
    assert aside.read_text() == "a stranger's"
