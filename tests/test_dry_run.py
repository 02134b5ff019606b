"""A dry run shows the plan, and then ends as the run would: with what it would be refused for, and with its status."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.files.output import OutputFile
from gguf_mla.stream import rehearse
from tests.support import hub
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def existing() -> None:
    Path("a.gguf").write_bytes(b"precious")


def unfinished_by_a_stranger() -> None:
    Path("a.gguf.partial").write_bytes(b"half")


def a_stranger_s_journal() -> None:
    Path("a.gguf.journal").write_bytes(b"dear diary")


def a_stranger_s_checksum() -> None:
    Path("a.gguf.sha256").write_bytes(b"not a checksum")


WAYS: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
    "exists": (existing, ("a.gguf",)),
    "equal names": (lambda: None, ("a.gguf", "--type", "Q8_0", "--type", "F16")),
    "no directory": (lambda: None, ("nowhere/a.gguf",)),
    "a stranger's partial": (unfinished_by_a_stranger, ("a.gguf",)),
    "a stranger's journal": (a_stranger_s_journal, ("a.gguf",)),
    "a stranger's note": (a_stranger_s_checksum, ("a.gguf",)),
    "too small a size": (lambda: None, ("a.gguf", "--target-size", "1M")),
    "needs importance": (lambda: None, ("a.gguf", "--type", "IQ2_XXS")),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_dry_run_ends_as_the_run_does(way: str) -> None:
    prepare, arguments = WAYS[way]
    prepare()
    before = sorted(path.name for path in Path().iterdir())
    foreseen = gguf_mla("convert", hub.BUNDLED, *arguments, "--dry-run")
    assert sorted(path.name for path in Path().iterdir()) == before
    met = gguf_mla("convert", hub.BUNDLED, *arguments)
    assert (foreseen.status, foreseen.output.splitlines()[-1]) == (met.status, met.output.splitlines()[-1])
    assert met.status == 2
    documented = gguf_mla("convert", hub.BUNDLED, *arguments, "--dry-run", "--json")
    document: Any = json.loads(documented.output.splitlines()[0])
    assert document["status"] == documented.status == 2
    assert f"gguf-mla: error: {document['errors'][0]['sentence']}" == met.output.splitlines()[-1]


def test_the_plan_is_shown_first() -> None:
    existing()
    answer = gguf_mla("convert", hub.BUNDLED, "a.gguf", "--dry-run")
    assert "token_embd.weight" in answer.output
    assert "exists already" in answer.output.splitlines()[-1]
    assert gguf_mla("convert", hub.BUNDLED, "a.gguf", "--dry-run", "--overwrite").status == 0


def test_an_unfinished_run_of_something_else_is_foreseen(checkpoint: Path) -> None:
    shard = max(checkpoint.glob("*.safetensors"))
    shutil.copy(shard, "shard")
    journal = Path("a.gguf.journal")
    assert gguf_mla("convert", checkpoint, "a.gguf").status == 0
    with OutputFile(Path("b.gguf"), 10):  # another process's
        pass
    journal.write_text(
        '{"program": "gguf-mla", "output": "a.gguf", "files": {}}\n'
        'made-of {"version": "0", "plan": "x", "inputs": [], "importance": ""}\n'
    )
    Path("a.gguf").unlink()
    foreseen = gguf_mla("convert", checkpoint, "a.gguf", "--dry-run")
    met = gguf_mla("convert", checkpoint, "a.gguf")
    assert foreseen.output.splitlines()[-1] == met.output.splitlines()[-1]
    assert foreseen.status == met.status == 2


def test_a_place_that_cannot_be_written_is_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and access(path, mode))  # root may do all
    answer = gguf_mla("convert", hub.BUNDLED, "a.gguf", "--dry-run")
    assert answer.status == 2
    assert "cannot be created (Permission denied)" in answer.output.splitlines()[-1]


def test_a_lack_of_room_is_said_and_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearse, "free_bytes", lambda _: 1 << 20)
    answer = gguf_mla("convert", hub.BUNDLED, "a.gguf", "--dry-run")
    assert answer.status == 0  # a plan may be made on another machine
    assert "warning: " in answer.output.splitlines()[-1]
    assert "there is not enough free disk space" in answer.output.splitlines()[-1]


def test_a_size_that_is_too_small_says_which_and_what_would_do() -> None:
    types = ("--type", "Q8_0", "--type", "2.5bpw")
    [said] = gguf_mla("convert", hub.BUNDLED, "{type}.gguf", *types, "--dry-run").output.splitlines()
    assert "2.5bpw is too small for this model" in said
    assert "bits per weight in all" in said
    assert "--imatrix" in said
