"""How far a run is, where there is no terminal: by lines that come often enough, for people or for programs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import termios
from typing import TYPE_CHECKING

import pytest

from gguf_mla import units
from gguf_mla.cli import progress
from gguf_mla.cli.progress import Lines
from tests.support import hub
from tests.support.command import command, environment, gguf_mla

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30


def test_a_line_comes_with_every_twentieth_and_after_half_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines("v3.gguf", 100 * GIB, "B", begin=100.0)
    said = []
    for second in range(200):
        lines.update(GIB if second < 100 else 0)
        said.append(lines.tick(100.0 + second))
    due = [second for second, was in enumerate(said) if was]
    assert due == [*range(10, 109, 10), 130, 160, 190]  # 10 % in 10 s; then nothing is done, and it is said
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "v3.gguf: 11%, 11.00 GiB of 100.00 GiB, 1.10 GiB/s, 81 s left"


def test_a_short_run_says_nothing_and_a_silent_one_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines("measuring", 40, "tensors", begin=0.0)
    assert not any(lines.tick(second) for second in (0, 5, 29))
    assert lines.tick(31)
    assert capsys.readouterr().err == "measuring: 0%, 0 tensors of 40 tensors, 0 tensors/s, nothing done yet\n"


def test_a_program_gets_objects(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines("v3.gguf", 100, "B", "json", begin=0.0)
    lines.update(50)
    lines.tick(25)
    assert json.loads(capsys.readouterr().err) == {
        "event": "progress", "stage": "v3.gguf", "done": 50, "total": 100, "unit": "B", "seconds": 25,
        "per_second": 2.0, "seconds_left": 25.0,
    }  # fmt: skip


def test_the_clock_is_looked_at_although_nothing_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOOK", 0.001)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress.progress("weights", 10):
        shown = ""
        while "weights" not in shown:
            shown += capsys.readouterr().err


def test_a_note_is_asked_for_when_something_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines("v3.gguf", 100, "B", begin=0.0, note=lambda: "network 5 B/s")
    lines.tick(31)
    assert capsys.readouterr().err.endswith("nothing done yet, network 5 B/s\n")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress.progress("v3.gguf", 100, note=lambda: "network 7 B/s") as bar:
        bar.update(100)
    assert "100/100" in (shown := capsys.readouterr().err)
    assert shown.rstrip().endswith("network 7 B/s]")


def test_what_an_earlier_run_has_done_is_no_measure_of_speed() -> None:
    lines = Lines("v3.gguf", 100, "B", begin=0.0, before=40)
    lines.update(10)
    found = lines.fields(5.0)
    assert (found["done"], found["per_second"], found["seconds_left"]) == (50, 2.0, 25.0)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (720, "12 min"), (12_000, "3 h 20 min"), (89 * 60, "89 min")]
)
def test_times_are_read_easily(seconds: float, words: str) -> None:
    assert units.span(seconds) == words


def test_warnings_and_errors_are_objects_too(tmp_path: Path) -> None:
    checkpoint = hub.write(tmp_path / "v2", "v2", num_hidden_layers=1, n_routed_experts=4)
    warned = gguf_mla("convert", checkpoint, tmp_path / "out.gguf", "--log-format", "json", "--json")
    events = [json.loads(line) for line in warned.output.splitlines()]
    assert [event.get("event") for event in events] == ["warning", None]
    refused = gguf_mla("convert", checkpoint, tmp_path / "out.gguf", "--log-format=json")
    assert json.loads(refused.output.splitlines()[-1])["event"] == "error"
    assert json.loads(refused.output.splitlines()[-1])["status"] == refused.status == 2


def test_a_terminal_has_a_bar_named_by_the_run(tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    line = command("convert", hub.BUNDLED, f"{tmp_path}/t-{{type}}.gguf", "--type", "F16", "--type", "BF16")
    with subprocess.Popen(line, stderr=terminal, stdout=subprocess.DEVNULL, env=environment()) as run:
        os.close(terminal)
        shown = b""
        try:
            while data := os.read(controller, 4096):
                shown += data
        except OSError:  # Linux's end of a terminal that nobody has any more
            pass
    os.close(controller)
    assert run.returncode == 0
    assert b"2 outputs: 100%" in shown
