"""No name that a run touches may be an input or a stranger's file: those stay as they are."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from gguf_mla.files import platform
from gguf_mla.sources import hub_cache
from tests.support import command, crash
from tests.support.crash import Job
from tests.support.guard import BESIDE, FOREIGN, KINDS, TOUCHED, done, killed_while_naming, refused


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
