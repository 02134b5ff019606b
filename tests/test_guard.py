"""What a run writes never costs anybody a file: inputs, strangers' files and finished outputs are left as they are."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_mla.container.reader import open_gguf
from gguf_mla.files import platform
from gguf_mla.importance.gguf import write_imatrix
from gguf_mla.sources import hub_cache
from gguf_mla.stream import execute as executor
from tests.support import command, crash, legacy
from tests.support.crash import Job, content

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOREIGN = b"somebody's only copy" * 1000
# What a run that writes m.gguf creates, replaces or removes.
TOUCHED = ("m.gguf", "m.gguf.partial", "m.gguf.journal", "m.gguf.sha256", "m.gguf.sha256.partial")
BESIDE = TOUCHED[1:]


@pytest.fixture(scope="module")
def made(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """q8.gguf, other.gguf of the same size, legacy.gguf and its matrix leg.gguf."""
    directory = tmp_path_factory.mktemp("made")
    command.convert(pristine, directory / "q8.gguf", "Q8_0")
    other = bytearray((directory / "q8.gguf").read_bytes())
    other[-100:] = bytes(100)
    (directory / "other.gguf").write_bytes(other)
    command.convert(pristine, directory / "bf16.gguf", "BF16")
    legacy.write_variant(directory / "bf16.gguf", directory / "legacy.gguf", "legacy")
    name = "blk.1.attn_kv_b.weight"
    cols = open_gguf(directory / "legacy.gguf").tensors[name].shape[-1]
    entries = {name: (np.ones((1, cols), np.float32), np.ones(1, np.float32))}
    write_imatrix(directory / "leg.gguf", entries, datasets=["a"], chunk_count=1, chunk_size=8)
    return directory


@pytest.fixture(autouse=True)
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with all of them, which is the current one; who changes one does it to a copy."""
    directory = tmp_path / "here"
    shutil.copytree(made, directory, copy_function=os.link)
    monkeypatch.chdir(directory)
    with crash.small_steps():
        yield directory


def refused(*arguments: Any, status: int = 2, says: str = "") -> str:
    """Run a command that has to change nothing that is there, and to leave nothing."""
    before = content(Path())
    answer = command.gguf_mla(*arguments)
    assert answer.status == status, answer.output
    assert says in answer.output
    assert content(Path()) == before
    return answer.output


def done(*arguments: Any) -> str:
    answer = command.gguf_mla(*arguments)
    assert answer.status == 0, answer.output
    return answer.output


# ------------------------------------------------------------------------------------------- inputs among the names


@pytest.mark.parametrize("more", [(), ("--overwrite",), ("--no-resume",), ("--checksums",)], ids=str)
@pytest.mark.parametrize("how", ["the file", "a hard link", "a symbolic link"])
@pytest.mark.parametrize("name", TOUCHED)
def test_no_name_that_a_run_touches_may_be_an_input(name: str, how: str, more: tuple[str, ...]) -> None:
    if how == "the file":
        source = Path("q8.gguf").rename(name)
    else:
        source = Path("q8.gguf")
        (Path(name).hardlink_to if how == "a hard link" else Path(name).symlink_to)(source)
    refused("quantize", source, "m.gguf", "COPY", *more, says="one of the inputs")


@pytest.mark.parametrize("name", TOUCHED)
def test_no_name_may_be_another_file_that_is_read(name: str) -> None:
    Path(name).write_text("output=Q8_0\n")
    refused("quantize", "bf16.gguf", "m.gguf", "Q4_0", "--tensor-type-file", name, "--overwrite", says="of the inputs")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_no_name_may_be_a_file_of_the_checkpoint(name: str, pristine: Path) -> None:
    checkpoint = shutil.copytree(pristine, Path("checkpoint"))
    Path("m.gguf.partial").hardlink_to(checkpoint / name)
    answer = command.gguf_mla("convert", checkpoint, "m.gguf")
    assert answer.status == 2
    assert "one of the inputs" in answer.output
    assert (checkpoint / name).read_bytes() == (pristine / name).read_bytes()


@pytest.mark.parametrize("part", ["", ".partial"])
def test_the_matrix_that_goes_with_an_upgrade_is_such_a_name(part: str) -> None:
    model = Path("legacy.gguf").rename(f"up.imatrix.gguf{part}")
    refused("upgrade", model, "up.gguf", "--imatrix", "leg.gguf", "--overwrite", says="one of the inputs")
    model.rename("legacy.gguf")
    matrix = Path("leg.gguf").rename(f"up.imatrix.gguf{part}")
    refused("upgrade", "legacy.gguf", "up.gguf", "--imatrix", matrix, "--overwrite", says="one of the inputs")


def test_the_names_of_one_run_are_distinct() -> None:
    refused("quantize", "bf16.gguf", "m.gguf", "Q4_0", "Q8_0", says="two outputs have the same name")


# -------------------------------------------------------------------------------------------------- strangers' files


@pytest.mark.parametrize("more", [(), ("--overwrite",), ("--no-resume",), ("--checksums", "--overwrite")], ids=str)
@pytest.mark.parametrize("name", ["m.gguf.partial", "m.gguf.journal", "m.gguf.sha256"])
def test_a_strangers_file_is_never_emptied(name: str, more: tuple[str, ...]) -> None:
    Path(name).write_bytes(FOREIGN)
    assert name in refused("quantize", "q8.gguf", "m.gguf", "COPY", *more, says="Move it away")


@pytest.mark.parametrize("name", ["up.gguf.partial", "up.imatrix.gguf.partial"])
def test_junk_beside_an_upgrade_is_left_alone(name: str) -> None:
    Path(name).write_bytes(FOREIGN)
    refused("upgrade", "legacy.gguf", "up.gguf", "--imatrix", "leg.gguf", says="Move it away")


def test_the_journal_of_another_output_speaks_for_nobody_else() -> None:
    job = Job(("quantize", "q8.gguf", "a.gguf", "COPY", "--quiet"))
    assert crash.killed_at(40, lambda: job.run(Path())) == -signal.SIGKILL
    Path("a.gguf.journal").rename("m.gguf.journal")
    Path("m.gguf.partial").write_bytes(FOREIGN)
    refused("quantize", "q8.gguf", "m.gguf", "COPY", says="not the journal of such a run")
    refused("quantize", "q8.gguf", "m.gguf", "COPY", "--no-resume", "--overwrite", says="not the journal of such a run")


@pytest.mark.parametrize("how", ["another file", "a hard link"])
def test_an_unfinished_file_that_was_exchanged_is_not_ours(how: str) -> None:
    job = Job(("quantize", "q8.gguf", "m.gguf", "COPY", "--quiet"))
    assert crash.killed_at(40, lambda: job.run(Path())) == -signal.SIGKILL
    unfinished, theirs = Path("m.gguf.partial"), Path("theirs")
    theirs.write_bytes(FOREIGN)
    if how == "another file":
        theirs.replace(unfinished)
    else:
        unfinished.unlink()
        unfinished.hardlink_to(theirs)
    refused("quantize", "q8.gguf", "m.gguf", "COPY", says="no run of ours has noted it")
    refused("quantize", "q8.gguf", "m.gguf", "COPY", "--no-resume", says="no run of ours has noted it")
    unfinished.unlink()
    done("quantize", "q8.gguf", "m.gguf", "COPY")
    assert Path("m.gguf").read_bytes() == Path("q8.gguf").read_bytes()


def test_an_unfinished_file_that_has_another_name_too_is_kept() -> None:
    job = Job(("quantize", "q8.gguf", "m.gguf", "COPY", "--quiet"))
    assert crash.killed_at(40, lambda: job.run(Path())) == -signal.SIGKILL
    Path("kept").hardlink_to("m.gguf.partial")
    refused("quantize", "q8.gguf", "m.gguf", "COPY", says="no run of ours has noted it")


def test_a_link_in_the_way_of_a_finished_file_is_said() -> None:
    killed_while_naming()
    Path("m.gguf.partial").symlink_to("nowhere")
    answer = command.gguf_mla("quantize", "q8.gguf", "m.gguf", "COPY")
    assert answer.status == 2
    assert "m.gguf.partial: is in the way of m.gguf" in answer.output


def test_an_empty_unfinished_file_is_of_no_value() -> None:
    for name in BESIDE[:2]:
        Path(name).touch()
    done("quantize", "q8.gguf", "m.gguf", "COPY")
    assert Path("m.gguf").read_bytes() == Path("q8.gguf").read_bytes()
    assert not any(Path(name).exists() for name in BESIDE)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
@pytest.mark.parametrize("name", ["m.gguf.partial", "m.gguf.journal"])
def test_what_belongs_to_another_user_is_not_adopted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "PORTABLE", False)
    job = Job(("quantize", "q8.gguf", "m.gguf", "COPY", "--quiet"))
    assert crash.killed_at(40, lambda: job.run(Path())) == -signal.SIGKILL
    os.chown(name, 65534, 65534)
    refused("quantize", "q8.gguf", "m.gguf", "COPY", says="belongs to another user")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_an_empty_file_of_another_user_is_not_written_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "PORTABLE", False)
    Path("m.gguf.partial").touch()
    os.chown("m.gguf.partial", 65534, 65534)
    refused("quantize", "q8.gguf", "m.gguf", "COPY", says="belongs to another user")


def bound(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as made_here:
        made_here.bind(name)


KINDS: dict[str, Callable[[str], object]] = {
    "pipe": os.mkfifo,
    "device": lambda name: os.mknod(name, 0o20666, os.makedev(1, 3)),
    "socket": bound,
    "directory": os.mkdir,
    "broken link": lambda name: Path(name).symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TOUCHED)
@pytest.mark.parametrize("more", [(), ("--overwrite", "--checksums")], ids=str)
def test_only_regular_files_are_replaced(name: str, kind: str, more: tuple[str, ...]) -> None:
    if kind == "directory" and name == "m.gguf":
        return  # the output goes into it
    if name == "m.gguf.sha256.partial" and not more:
        return  # is not written
    try:
        KINDS[kind](name)
    except PermissionError:
        pytest.skip("making a device needs root")
    before = os.lstat(name).st_ino
    answer = command.gguf_mla("quantize", "q8.gguf", "m.gguf", "COPY", *more)
    assert answer.status == 2, answer.output
    assert name in answer.output
    assert os.lstat(name).st_ino == before
    assert not any(os.path.lexists(other) for other in TOUCHED if other != name)


def test_a_link_at_the_output_is_not_replaced() -> None:
    Path("m.gguf").symlink_to("other.gguf")
    for more in ((), ("--overwrite",)):
        refused("quantize", "q8.gguf", "m.gguf", "COPY", *more, says="not a regular file")


# ----------------------------------------------------------------------------------------- what happens in mid-run


def before_commit(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have something happen once everything is written and nothing is named."""
    real = executor._commit
    monkeypatch.setattr(executor, "_commit", lambda *args: (act(), real(*args)))


def test_a_second_process_does_not_take_a_finished_name_away(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("quantize", "bf16.gguf", "m-{type}.gguf", "COPY", "Q8_0", "--quiet")
    answers: list[command.Answer] = []
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


COPY = Job(("quantize", "q8.gguf", "m.gguf", "COPY", "--quiet"))


def killed_while_naming() -> None:
    """Leave a finished file under its name, and a journal that says so."""
    total = crash.operations(lambda: COPY.run(Path()))
    Path("m.gguf").unlink()
    assert crash.killed_at(total, lambda: COPY.run(Path())) == -signal.SIGKILL
    assert Path("m.gguf.journal").exists()
    assert Path("m.gguf").exists()


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


CHANGES: dict[str, Callable[[Path], object]] = {
    "overwritten": lambda path: path.write_bytes(path.read_bytes()),
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


# ---------------------------------------------------------------------------------------- small files, the same door


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


# ------------------------------------------------------------------------------------------------- --verify-source


@pytest.fixture
def partly(pristine: Path) -> Path:
    """A download of which the hub's word is missing for one shard."""
    directory = shutil.copytree(pristine, Path("download"))
    notes = directory / ".cache/huggingface/download"
    notes.mkdir(parents=True)
    first, *others = sorted(directory.glob("*.safetensors"))
    for shard in others:
        (notes / f"{shard.name}.metadata").write_text(f"0123\n{hub_cache.sha256(shard)}\n1.5\n")
    return first


def test_inputs_that_nobody_vouches_for_are_named(partly: Path) -> None:
    arguments = ("convert", partly.parent, "m.gguf", "--verify-source", "--quiet")
    answer = command.gguf_mla(*arguments)
    assert answer.status == 2
    assert f"states no SHA-256 for {partly.name}" in answer.output
    assert "--allow-unverified" in answer.output
    done(*arguments, "--allow-unverified")


def test_what_is_vouched_for_is_compared_all_the_same(partly: Path) -> None:
    shard = max(partly.parent.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    answer = command.gguf_mla("convert", partly.parent, "m.gguf", "--verify-source", "--allow-unverified")
    assert answer.status == 2
    assert "is not the file that the hub has" in answer.output


def test_many_unknown_files_are_counted(tmp_path: Path) -> None:
    notes = tmp_path / ".cache/huggingface/download"
    notes.mkdir(parents=True)
    (notes / "0.metadata").write_text(f"0123\n{'0' * 64}\n1.5\n")
    with pytest.raises(hub_cache.InputError, match="1, 2, 3, 4, 5 and 994 more"):
        hub_cache.verify([tmp_path / str(number) for number in range(1000)])
