"""Matrices, checksums, reports and demos appear complete or not at all, and replace only what is theirs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support import command, crash
from tests.support.crash import Job
from tests.support.guard import FOREIGN, KINDS, done, refused

UPGRADE = Job(("upgrade", "legacy.gguf", "up.gguf", "--imatrix", "leg.gguf", "--checksums", "--quiet"))


@pytest.mark.slow
def test_an_upgrade_with_its_matrix_is_killed_anywhere_and_continued() -> None:
    UPGRADE.run(Path())
    written = [path for path in Path().iterdir() if path.name.startswith("up.")]
    assert sorted(path.name for path in written) == ["up.gguf", "up.gguf.sha256", "up.imatrix.gguf"]
    expected = {path.name: path.read_bytes() for path in written}
    for path in written:
        path.unlink()
    total = crash.operations(lambda: UPGRADE.run(Path()))
    for back in range(26):
        for path in Path().glob("up.*"):
            path.unlink()
        assert crash.killed_at(total - back, lambda: UPGRADE.run(Path())) == -signal.SIGKILL
        for name in expected.keys() & {path.name for path in Path().iterdir()}:
            assert Path(name).read_bytes() == expected[name], (back, name)
        UPGRADE.run(Path())
        assert {path.name: path.read_bytes() for path in Path().glob("up.*")} == expected, back


def test_a_note_of_an_unfinished_run_goes_with_it() -> None:
    total = crash.operations(lambda: UPGRADE.run(Path()))
    for path in Path().glob("up.*"):
        path.unlink()
    for back in range(14):
        if crash.killed_at(total - back, lambda: UPGRADE.run(Path())) and Path("up.gguf.sha256.partial").exists():
            break
        for path in Path().glob("up.*"):
            path.unlink()
    assert Path("up.gguf.sha256.partial").exists()
    Job(tuple(argument for argument in UPGRADE.arguments if argument != "--checksums")).run(Path())
    assert sorted(path.name for path in Path().glob("up.*")) == ["up.gguf", "up.imatrix.gguf"]


def test_a_checksum_of_an_older_file_is_ours_to_replace_and_that_of_others_is_not() -> None:
    note = Path("m.gguf.sha256")
    note.write_text(f"{'0' * 64}  m.gguf\n")
    done("quantize", "q8.gguf", "m.gguf", "COPY", "--checksums")
    assert "0" * 64 not in note.read_text()
    done("inspect", "m.gguf", "--verify")
    note.write_text(f"{'0' * 64}  m.gguf\n{'1' * 64}  another\n")
    refused("quantize", "q8.gguf", "m.gguf", "COPY", "--overwrite", says="not a checksum of the output")


@pytest.mark.parametrize("name", ["q8.gguf", "text.txt", "page.html", "config.json"])
def test_a_report_replaces_no_other_file(name: str, pristine: Path) -> None:
    if not Path(name).exists():
        Path(name).write_text("<!doctype html><html>mine</html>")
    refused("verify", pristine, "q8.gguf", "--level", "structure", "--report", name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_replaces_no_other_kind(kind: str, pristine: Path) -> None:
    try:
        KINDS[kind]("report.html")
    except PermissionError:
        pytest.skip("making a device needs root")
    answer = command.gguf_mla("verify", pristine, "q8.gguf", "--level", "structure", "--report", "report.html")
    assert answer.status == 2, answer.output


def test_a_report_replaces_an_older_one_once_it_is_complete(monkeypatch: pytest.MonkeyPatch, pristine: Path) -> None:
    from verify.report import page

    arguments = ("verify", pristine, "q8.gguf", "--level", "structure", "--quiet", "--report", "report.html")
    done(*arguments)
    before = Path("report.html").read_bytes()
    with monkeypatch.context() as patch, crash.full_after(100):
        patch.setattr(page, "page", lambda _: "x" * 10_000)
        answer = command.gguf_mla(*arguments)
    assert answer.status == 3
    assert Path("report.html").read_bytes() == before
    assert not Path("report.html.partial").exists()
    done(*arguments)


@pytest.mark.parametrize("name", ["report.html", "report.html.partial"])
def test_that_a_report_cannot_be_written_is_said_before_the_proof(
    name: str, pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verify import run

    Path(name).write_bytes(FOREIGN)
    monkeypatch.setattr(run, "prove", lambda *_: pytest.fail("the proof has begun"))
    refused("verify", pristine, "q8.gguf", "--report", "report.html", says="is there already")


@pytest.mark.parametrize("kept", [200, 3000])
def test_what_a_killed_run_left_of_a_report_is_thrown_away(kept: int, pristine: Path) -> None:
    arguments = ("verify", pristine, "q8.gguf", "--level", "structure", "--quiet", "--report", "report.html")
    done(*arguments)
    Path("report.html.partial").write_bytes(Path("report.html").read_bytes()[:kept])
    done(*arguments)
    assert not Path("report.html.partial").exists()
    assert Path("report.html").read_text(encoding="utf-8").endswith("</html>\n")


def test_a_report_that_was_killed_with_two_names_is_written_anew(pristine: Path) -> None:
    arguments = ("verify", pristine, "q8.gguf", "--level", "structure", "--quiet", "--report", "r.html")
    done(*arguments)
    os.link("r.html", "r.html.partial")
    done(*arguments)
    assert Path("r.html").stat().st_nlink == 1
    assert not Path("r.html.partial").exists()


def test_a_report_of_ours_that_is_read_as_text_is_kept(pristine: Path) -> None:
    done("verify", pristine, "q8.gguf", "--level", "structure", "--quiet", "--report", "r.html")
    refused("verify", pristine, "q8.gguf", "--text", "r.html", "--report", "r.html", says="one of the inputs")


def test_the_demo_replaces_its_own_files_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from convert import demo

    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    done("demo", "demo")
    done("demo", "demo")
    path = Path("demo/tiny-deepseek-v3-BF16.gguf")
    path.unlink()
    with crash.full_after(100_000):
        assert command.gguf_mla("demo", "demo").status == 3
    done("demo", "demo")
    path.write_bytes(FOREIGN)
    answer = command.gguf_mla("demo", "demo")
    assert answer.status == 2
    assert path.read_bytes() == FOREIGN
