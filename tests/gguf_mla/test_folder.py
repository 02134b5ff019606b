"""The seam between what reads a checkpoint and where its files lie."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from gguf_mla.errors import InputError
from gguf_mla.files.input import InputFile
from gguf_mla.sources.checkpoint import open_checkpoint
from gguf_mla.sources.folder import Folder, LocalFolder
from gguf_mla.sources.tokenizer_files import read_tokenizer
from tests.support import hub
from tests.support.memory import MemoryFolder

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_mla.files.readable import Readable


def filled(directory: Path) -> Path:
    (directory / "inner" / "deeper").mkdir(parents=True)
    for name in ("b.json", "a.txt", "inner/c.jinja", "inner/deeper/d"):
        (directory / name).write_text("{}\r\n", encoding="utf-8")
    (directory / "a link").symlink_to(directory / "a.txt")
    (directory / "a broken link").symlink_to(directory / "nowhere")
    return directory


def test_a_directory_and_its_copy_in_memory_are_the_same_folder(tmp_path: Path) -> None:
    here = LocalFolder(filled(tmp_path / "x"))
    for folder in (here, MemoryFolder.of(here.path)):
        assert folder.path.name == "x"
        assert folder.names() == ["a link", "a.txt", "b.json"]
        assert folder.names("inner") == ["inner/c.jinja"]
        assert folder.names("absent") == []
        assert (folder.json("b.json"), folder.text("inner/c.jinja"), folder.data("a.txt")) == ({}, "{}\n", b"{}\r\n")
        file: Readable = folder.open("a.txt")
        assert (file.name, file.size, file.read(1, 2).tobytes()) == (str(folder.path / "a.txt"), 4, b"}\r")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"[]", "is not a JSON object"), (b"{", "is not valid JSON"), (b"\xff", "is not "), (None, "cannot be read")],
)
def test_errors_name_the_full_path(tmp_path: Path, content: bytes | None, said: str) -> None:
    folders: list[Folder] = [LocalFolder(tmp_path), MemoryFolder("m", {})]
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
        folders[1] = MemoryFolder("m", {"x.json": content})
    for folder in folders:
        with pytest.raises(InputError, match=said) as error:
            folder.json("x.json")
        assert str(error.value).startswith(f"{folder.path / 'x.json'}: ")


def test_text_that_is_not_utf_8_is_said() -> None:
    with pytest.raises(InputError, match=r"x\.jinja: is not UTF-8 text"):
        MemoryFolder("m", {"x.jinja": b"\xff"}).text("x.jinja")


def test_a_directory_that_went_away_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent: cannot be read"):
        LocalFolder(tmp_path / "absent").names()


def test_a_files_identity_changes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    first, again = InputFile(path).identity, InputFile(path).identity
    os.utime(path, ns=(1, 1))
    touched = InputFile(path).identity
    path.write_bytes(b"four")
    os.utime(path, ns=(1, 1))
    assert first == again
    assert len({first, touched, InputFile(path).identity}) == 3


def test_a_checkpoint_names_its_memory_in_errors() -> None:
    folder = MemoryFolder.of(hub.BUNDLED)
    shard = next(name for name in folder.names() if name.endswith(".safetensors"))
    folder.files[shard] = folder.files[shard][:100]
    with pytest.raises(InputError, match=f"^memory:/{hub.BUNDLED.name}/{shard}: "):
        open_checkpoint(folder)


def test_the_tokenizers_files_are_each_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = MemoryFolder.of(hub.BUNDLED)
    folder.files["additional_chat_templates/rag.jinja"] = b"R"
    folder.files["chat_template.json"] = b"damaged, but not needed beside a .jinja"
    opened: list[str] = []
    original = folder.open
    monkeypatch.setattr(folder, "open", lambda name: opened.append(name) or original(name))
    files = read_tokenizer(folder)
    assert len(opened) == len(set(opened))
    assert files.templates["rag"] == "R"
    assert (files.tokenizer, files.ranks) == (folder.json("tokenizer.json"), None)
    assert files.stated == {}
