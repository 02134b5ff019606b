"""The README's commands run as they are written, and print what it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests import readme
from tests.support.command import gguf_mla
from tests.support.hub import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_session_is_as_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = []

    def run(words: list[str]) -> tuple[int, str]:
        done.append(words[0])
        answer = gguf_mla(*words)
        return answer.status, answer.output

    assert readme.play(lambda step: not step.is_long, run) == []
    assert {"convert", "inspect", "quantize"} <= set(done)
    assert len(done) >= 6


def test_what_differs_is_seen() -> None:
    step = readme.Step("x", ("5.00 MiB in 1.2 s", "...", "name  size", "----  ----"))
    assert readme.differences(step, "9 KiB in 10 s\nanything\nname    size\n------  ----\n") == []
    assert readme.differences(step, "9 KiB in 10 s\nname\n") != []
    assert readme.differences(step, "9 KiB in 10 s\nname size\nmore\n") != []


def test_every_command_is_found() -> None:
    found = [step.command for step in readme.steps((REPOSITORY / "README.md").read_text(encoding="utf-8"))]
    assert len(found) >= 12
    assert "echo $?" in found
