"""What happens while a run is on costs nobody a file, and nothing incomplete or mixed gets a name."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.files import platform
from gguf_mla.stream import execute as executor
from tests.support import command
from tests.support.guard import BESIDE, FOREIGN, TOUCHED, done, killed_while_naming, refused

if TYPE_CHECKING:
    from collections.abc import Callable


def before_commit(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have something happen once everything is written and nothing is named."""
    real = executor._commit
    monkeypatch.setattr(executor, "_commit", lambda *args: (act(), real(*args)))


def test_a_second_process_does_not_take_a_finished_name_away(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("quantize", "bf16.gguf", "m-{type}.gguf", "COPY", "Q8_0", "--quiet")
    answers: list[command.Answer] = []
    monkeypatch.setattr(platform, "PORTABLE", False)  # which has no locks
    real = platform.sync_directory

    def sync_directory(directory: Path) -> None:
        real(directory)
        if Path("m-COPY.gguf").exists() and len(answers) < 2:
            answers.append(command.Answer(0, ""))  # so that the second does not start a third
            answers[-1] = command.gguf_mla(*arguments)

    monkeypatch.setattr(platform, "sync_directory", sync_directory)
    done(*arguments)
    assert [answer.status for answer in answers] == [2, 2]
    assert all("another process is writing" in answer.output for answer in answers)
    assert sorted(path.name for path in Path().glob("m-*")) == ["m-COPY.gguf", "m-Q8_0.gguf"]


@pytest.mark.parametrize("what", ["removed", "another file", "a link", "a run of its own"])
def test_only_the_file_that_was_written_is_named(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    second: list[command.Answer] = []
    monkeypatch.setattr(platform, "PORTABLE", False)  # which has no locks

    def swap() -> None:
        partial = Path("m.gguf.partial")
        partial.unlink()
        if what == "another file":
            partial.write_bytes(FOREIGN)
        elif what == "a link":
            partial.symlink_to("other.gguf")
        elif what == "a run of its own":
            second.append(command.gguf_mla("quantize", "q8.gguf", "m.gguf", "COPY"))

    with monkeypatch.context() as patch:
        before_commit(patch, swap)
        answer = command.gguf_mla("quantize", "q8.gguf", "m.gguf", "COPY")
    assert answer.status == 3
    assert "was taken away" in answer.output
    assert not os.path.lexists("m.gguf")
    assert [answer.status for answer in second] == [2] * len(second)
    if what == "another file":
        assert Path("m.gguf.partial").read_bytes() == FOREIGN


def test_nothing_is_named_when_one_of_several_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("quantize", "bf16.gguf", "m-{type}.gguf", "COPY", "Q8_0", "--quiet")
    with monkeypatch.context() as patch:
        before_commit(patch, lambda: Path("m-Q8_0.gguf").write_bytes(FOREIGN))
        answer = command.gguf_mla(*arguments)
    assert answer.status == 3
    assert "exists already" in answer.output
    assert not Path("m-COPY.gguf").exists()
    assert Path("m-Q8_0.gguf").read_bytes() == FOREIGN
    Path("m-Q8_0.gguf").unlink()
    done(*arguments)
    assert Path("m-COPY.gguf").stat().st_size == Path("bf16.gguf").stat().st_size


@pytest.mark.parametrize("late", [False, True])
def test_an_output_that_appears_meanwhile_is_not_replaced(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def appear() -> None:
        Path("m.gguf").write_bytes(FOREIGN)

    with monkeypatch.context() as patch:
        if late:  # after the last look: only the file system itself can say no
            real = platform.name_new
            patch.setattr(platform, "PORTABLE", False)
            patch.setattr(platform, "name_new", lambda *paths: (appear(), real(*paths)))
        else:
            before_commit(patch, appear)
        answer = command.gguf_mla("quantize", "q8.gguf", "m.gguf", "COPY")
    assert answer.status == 3
    assert "exists already, since the run began" in answer.output
    assert Path("m.gguf").read_bytes() == FOREIGN
    done("quantize", "q8.gguf", "m.gguf", "COPY", "--overwrite")
    assert Path("m.gguf").read_bytes() == Path("q8.gguf").read_bytes()


def test_a_pipe_that_appears_meanwhile_is_not_replaced_even_with_overwrite(monkeypatch: pytest.MonkeyPatch) -> None:
    before_commit(monkeypatch, lambda: os.mkfifo("m.gguf"))
    answer = command.gguf_mla("quantize", "q8.gguf", "m.gguf", "COPY", "--overwrite")
    assert answer.status == 3
    assert Path("m.gguf").is_fifo()


@pytest.mark.parametrize("how", ["in place", "moved there"])
def test_only_files_that_we_have_named_are_taken_back(how: str) -> None:
    killed_while_naming()
    if how == "in place":  # the same inode, the same size
        Path("m.gguf").write_bytes(Path("other.gguf").read_bytes())
    else:
        shutil.copy("other.gguf", "theirs")
        Path("theirs").replace("m.gguf")
    refused("quantize", "q8.gguf", "m.gguf", "COPY", says="exists already")
    done("quantize", "q8.gguf", "m.gguf", "COPY", "--overwrite")
    assert Path("m.gguf").read_bytes() == Path("q8.gguf").read_bytes()


def test_what_was_named_is_taken_back_and_named_again() -> None:
    killed_while_naming()
    done("quantize", "q8.gguf", "m.gguf", "COPY")
    assert Path("m.gguf").read_bytes() == Path("q8.gguf").read_bytes()
    assert not any(Path(name).exists() for name in BESIDE)


def after_reading(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have something happen when a tenth of the input is read."""
    real, reads = platform.write_at, iter(range(1_000_000))

    def write_at(*args: Any) -> int:
        if next(reads) == 30:
            act()
        return real(*args)

    monkeypatch.setattr(platform, "write_at", write_at)


def overwrite(path: Path) -> None:
    """Write what is there once more, in place."""
    with path.open("r+b") as file:
        content = file.read()
        file.seek(0)
        file.write(content)


CHANGES: dict[str, Callable[[Path], object]] = {
    "overwritten": overwrite,
    "another time": lambda path: os.utime(path, ns=(0, 0)),
    "replaced": lambda path: (shutil.copy2(path, "copy"), Path("copy").replace(path)),
    "removed": lambda path: path.unlink(),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_input_that_changes_while_it_is_read_is_named(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy2(Path("bf16.gguf").rename("old"), "bf16.gguf")
    with monkeypatch.context() as patch:
        after_reading(patch, partial(CHANGES[change], Path("bf16.gguf")))
        answer = command.gguf_mla("quantize", "bf16.gguf", "m.gguf", "Q8_0")
    assert answer.status == 3
    assert "bf16.gguf: the file was changed or replaced while it was read" in answer.output
    assert not any(Path(name).exists() for name in TOUCHED)


def test_an_importance_file_that_changes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy2(Path("leg.gguf").rename("old"), "leg.gguf")
    after_reading(monkeypatch, partial(CHANGES["another time"], Path("leg.gguf")))
    answer = command.gguf_mla("upgrade", "legacy.gguf", "up.gguf", "--imatrix", "leg.gguf")
    assert answer.status == 3
    assert "leg.gguf: the file was changed" in answer.output
    assert not list(Path().glob("up.*"))
