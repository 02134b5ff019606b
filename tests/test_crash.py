"""Killed, interrupted, out of space, or robbed of its input: a rerun gives the file of an undisturbed run."""

from __future__ import annotations

import errno
import itertools
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla.container.reader import open_gguf
from gguf_mla.files import output, platform
from gguf_mla.files.output import OutputFile, partial_path
from gguf_mla.stream import threads, worker
from gguf_mla.stream.journal import journal_room
from tests.support import bulk, command, crash, damage, hub
from tests.support.crash import Job, content
from tests.support.matrices import write_imatrix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KILLS = 8  # of each job; benchmarks/crashes.py does a hundred


@pytest.fixture(autouse=True)
def steps() -> Iterator[None]:
    with crash.small_steps():
        yield


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    return crash.jobs(tmp_path_factory.mktemp("begin"))


@pytest.fixture(scope="module")
def undisturbed(jobs: dict[str, Job], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    written = {}
    for name, job in jobs.items():
        directory = tmp_path_factory.mktemp(name)
        job.run(directory)
        written[name] = content(directory)
    return written


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convert", "quantize", "copy", "repack", "split"])
def test_a_run_killed_at_any_instant_is_continued_to_the_same_bytes(
    name: str, jobs: dict[str, Job], undisturbed: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    job, expected = jobs[name], undisturbed[name]
    scratch = tmp_path / "count"
    scratch.mkdir()
    total = crash.operations(lambda: job.run(scratch))
    # The last ones are the renames of the finished files and the end of the journal.
    instants = [*random.Random(name).sample(range(1, total), KILLS), *range(total - 5, total + 1)]
    for instant in instants:
        out = tmp_path / f"killed-{instant}"
        out.mkdir()
        assert crash.killed_at(instant, lambda out=out: job.run(out)) == -signal.SIGKILL
        for path in out.glob("*.gguf"):
            assert path.read_bytes() == expected[path.name], f"{instant}: incomplete under its final name"
        job.run(out)
        assert content(out) == expected, instant
        shutil.rmtree(out)


def test_several_kills_in_a_row_do_no_harm(
    jobs: dict[str, Job], undisturbed: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    for instant in (80, 9, 30, 1, 60):
        assert crash.killed_at(instant, lambda: jobs["convert"].run(tmp_path)) == -signal.SIGKILL
    jobs["convert"].run(tmp_path)
    assert content(tmp_path) == undisturbed["convert"]


def test_a_continued_run_tells_of_all_that_was_rounded(jobs: dict[str, Job], tmp_path: Path) -> None:
    def told(out: Path) -> list[str]:
        output = command.gguf_mla(*(argument.format(out=out) for argument in jobs["repack"].arguments)).output
        return re.findall("warning: .* blocks of 32 weights .*", output)

    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    killed = tmp_path / "killed"
    total = crash.operations(lambda: jobs["repack"].run(killed))
    (killed / "out.gguf").unlink()
    assert crash.killed_at(total - 20, lambda: jobs["repack"].run(killed)) == -signal.SIGKILL
    assert told(killed) == told(tmp_path / "whole") != []


def failing(job: Job, out: Path, *more: str) -> tuple[int, str]:
    """Run a job that is expected to fail, and return its status and sentence."""
    answer = command.gguf_mla(*(argument.format(out=out) for argument in (*job.arguments, *more)))
    assert answer.status != 0, answer.output
    return answer.status, answer.output


@pytest.mark.parametrize("level", [0, 1, 30_000, 1_000_000, 4_000_000, 8_000_000])
def test_a_disk_that_fills_up_is_said_and_the_run_continued(
    level: int, jobs: dict[str, Job], undisturbed: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    with crash.full_after(level):
        status, said = failing(jobs["convert"], tmp_path)
    assert status == 3
    assert "not enough free disk space (expected" in said
    assert "bytes free). Free some space and run the command again" in said
    assert not (tmp_path / "out.gguf").exists()
    jobs["convert"].run(tmp_path)
    assert content(tmp_path) == undisturbed["convert"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that has nine megabytes and cannot get more, where we may mount one."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", directory], check=False).returncode == 0
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)  # whatever still looks into it


def resize(directory: Path, nbytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={nbytes}", directory], check=True)


def test_a_real_disk_that_fills_up(
    jobs: dict[str, Job], undisturbed: dict[str, dict[str, bytes]], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize(small_disk, 5_000_000)
    status, said = failing(jobs["convert"], small_disk)
    assert (status, list(small_disk.iterdir())) == (3, [])
    assert "expected 90" in said
    with monkeypatch.context() as patch:
        # Something else fills the disk after we have looked.
        patch.setattr(output, "free_bytes", lambda _: 1 << 40)
        status, said = failing(jobs["convert"], small_disk)
    assert status == 3
    assert [path.name for path in sorted(small_disk.iterdir())] == ["out.gguf.journal", "out.gguf.partial"]
    resize(small_disk, 10_000_000)
    jobs["convert"].run(small_disk)
    assert content(small_disk) == undisturbed["convert"]


def test_a_disk_with_no_byte_to_spare_is_enough(
    jobs: dict[str, Job], undisturbed: dict[str, dict[str, bytes]], small_disk: Path
) -> None:
    size = len(undisturbed["convert"]["out.gguf"])
    page = os.sysconf("SC_PAGE_SIZE")
    pages = -(-size // page) + -(-journal_room(size) // page) + 1  # the first line of the journal
    resize(small_disk, pages * page)
    jobs["convert"].run(small_disk)
    assert content(small_disk) == undisturbed["convert"]


def test_a_disk_that_another_program_fills_stops_the_run_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = itertools.chain([1 << 40], itertools.repeat(1000))
    monkeypatch.setattr(output, "free_bytes", lambda _: next(free))
    real = worker.write
    monkeypatch.setattr(worker, "write", lambda *rows: time.sleep(0.005) or real(*rows))  # time for a look
    status, said = failing(Job(("convert", str(hub.BUNDLED), "{out}/out.gguf")), tmp_path)
    assert status == 3
    assert "found 1000 bytes free" in said


@pytest.fixture
def copied(pristine: Path, tmp_path: Path) -> tuple[Path, Job]:
    """A checkpoint of its own and its conversion."""
    directory = shutil.copytree(pristine, tmp_path / "checkpoint")
    (tmp_path / "out").mkdir()
    return directory, Job(("convert", str(directory), "{out}/out.gguf", "--type", "Q8_0", "--threads", "1", "--quiet"))


def interrupted_at(instant: int, job: Job, out: Path) -> None:
    assert crash.killed_at(instant, lambda: job.run(out)) == -signal.SIGKILL
    assert (out / "out.gguf.journal").exists()


@pytest.mark.parametrize("trouble", ["truncated", "input/output error"])
def test_a_shard_that_fails_in_the_middle_stops_the_run_and_it_is_continued(
    trouble: str, copied: tuple[Path, Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, job = copied
    shard = sorted(directory.glob("*.safetensors"))[4]
    whole, times = shard.read_bytes(), shard.stat()
    real, reads = platform.read_at, iter(range(1_000_000))

    def read_at(fd: int, view: memoryview, offset: int) -> int:
        if next(reads) > 120 and os.path.samestat(os.fstat(fd), times):
            if trouble != "truncated":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            os.truncate(shard, 100_000)
        return real(fd, view, offset)

    with monkeypatch.context() as patch:
        patch.setattr(platform, "read_at", read_at)
        status, said = failing(job, tmp_path / "out")
    assert status == 3
    assert str(shard) in said
    assert sorted(content(tmp_path / "out")) == ["out.gguf.journal", "out.gguf.partial"]
    shard.write_bytes(whole)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    job.run(tmp_path / "out")
    command.convert(directory, tmp_path / "fresh.gguf", "Q8_0")
    assert content(tmp_path / "out") == {"out.gguf": (tmp_path / "fresh.gguf").read_bytes()}


def test_an_unfinished_output_of_other_options_is_kept_until_it_is_given_up(
    copied: tuple[Path, Job], tmp_path: Path
) -> None:
    directory, job = copied
    out = tmp_path / "out"
    interrupted_at(100, job, out)
    before = content(out)
    other = Job(tuple("BF16" if argument == "Q8_0" else argument for argument in job.arguments))
    status, said = failing(other, out)
    assert status == 2
    assert "begun with other options or another configuration. Give --no-resume" in said
    assert content(out) == before
    other.run(out, "--no-resume")
    command.convert(directory, tmp_path / "fresh.gguf", "BF16")
    assert content(out) == {"out.gguf": (tmp_path / "fresh.gguf").read_bytes()}


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The arguments of a quantization by an importance matrix that has as many ffn_up as ffn_down, and attn_kv_b."""
    directory = tmp_path_factory.mktemp("weighed")
    model, matrix = directory / "plain.gguf", directory / "matrix.gguf"
    command.convert(hub.BUNDLED, model, "BF16")
    shapes = {name: tensor.shape for name, tensor in open_gguf(model).tensors.items() if ".ffn_" in name}
    entries = {
        name: (np.random.default_rng(0).random((math.prod(shape[:-2]), shape[-1])) + 1, np.ones(math.prod(shape[:-2])))
        for name, shape in shapes.items()
        if re.search(r"ffn_(up|down)(_exps)?\.weight", name)
    }
    rank = open_gguf(model).tensors["blk.0.attn_v_b.weight"].shape[-1]
    entries["blk.0.attn_kv_b.weight"] = np.random.default_rng(1).random((1, rank)) + 1, np.ones(1)
    write_imatrix(matrix, entries, datasets=["text"], chunk_count=1, chunk_size=512)
    fixed = ("--pure", "--token-embedding-type", "F32", "--output-tensor-type", "F32", "--threads", "1", "--quiet")
    return ("quantize", str(model), "{out}/out.gguf", "Q4_0", "--imatrix", str(matrix), *fixed)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("--include-weights", "ffn_up"), ("--include-weights", "ffn_down")),
        (("--exclude-weights", "ffn_up"), ("--exclude-weights", "ffn_down")),
        ((), ("--compat", "llama.cpp")),
    ],
    ids=["include", "exclude", "compat"],
)
def test_an_unfinished_output_of_another_importance_is_not_continued(
    first: tuple[str, ...], second: tuple[str, ...], weighed: tuple[str, ...], tmp_path: Path
) -> None:
    interrupted_at(60, Job((*weighed, *first)), tmp_path)
    before = content(tmp_path)
    status, said = failing(Job((*weighed, *second)), tmp_path)
    assert status == 2
    assert "an unfinished output is there that was begun with" in said
    assert content(tmp_path) == before
    Job((*weighed, *first)).run(tmp_path)
    assert [*content(tmp_path)] == ["out.gguf"]


@pytest.mark.parametrize("change", ["time", "size", "header"])
def test_an_unfinished_output_of_another_source_is_not_continued(
    change: str, copied: tuple[Path, Job], tmp_path: Path
) -> None:
    directory, job = copied
    interrupted_at(100, job, tmp_path / "out")
    shard = max(directory.glob("*.safetensors"))
    times = shard.stat()
    data = bytearray(shard.read_bytes())
    if change == "header":
        data[20_000] ^= 1  # a weight, but so near to the header that it counts as part of it
    if change == "size":
        length = int.from_bytes(data[:8], "little")
        data[:8] = (length + 8).to_bytes(8, "little")
        data[8 + length : 8 + length] = b" " * 8
    shard.write_bytes(data)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns + (change == "time")))
    status, said = failing(job, tmp_path / "out")
    assert status == 2
    assert f"begun from other inputs, {shard.name} has changed since" in said
    job.run(tmp_path / "out", "--no-resume")


@pytest.mark.parametrize("part", ["out.gguf.partial", "out.gguf.journal"])
@pytest.mark.parametrize("how", ["zeros", "cut", "gone", "noise"])
def test_what_is_torn_is_done_again(part: str, how: str, copied: tuple[Path, Job], tmp_path: Path) -> None:
    directory, job = copied
    out = tmp_path / "out"
    interrupted_at(120, job, out)
    torn = out / part
    data = bytearray(torn.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 100] = bytes(100) if how == "zeros" else random.Random(0).randbytes(100)
    torn.write_bytes(data[:middle] if how == "cut" else data)
    if how == "gone":
        torn.unlink()
    if torn.suffix == ".journal" and how == "gone":  # then nothing says whose the unfinished file is
        assert "no run of ours has noted it" in failing(job, out)[1]
        (out / "out.gguf.partial").unlink()
    job.run(out)
    command.convert(directory, tmp_path / "fresh.gguf", "Q8_0")
    assert content(out) == {"out.gguf": (tmp_path / "fresh.gguf").read_bytes()}


def test_a_continued_run_encodes_only_what_is_missing(
    copied: tuple[Path, Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, job = copied
    interrupted_at(120, job, tmp_path / "out")
    noted = (tmp_path / "out/out.gguf.journal").read_text().count("\n") - 2  # what it is about, what the run is made of
    real, encoded = worker.write, []
    monkeypatch.setattr(worker, "write", lambda rows, *rest: encoded.append(rows.task.number) or real(rows, *rest))
    job.run(tmp_path / "out")
    assert noted > 0
    assert min(encoded) == noted  # one thread: the chunks are noted in their order


def test_a_bad_weight_leaves_nothing_to_go_on_with(copied: tuple[Path, Job], tmp_path: Path) -> None:
    directory, job = copied
    interrupted_at(100, job, tmp_path / "out")
    damage.write_value("model.norm.weight", 3, b"\xff\x7f")(directory)
    status, said = failing(job, tmp_path / "out", "--no-resume")
    assert status == 2
    assert "not a finite number" in said
    assert content(tmp_path / "out") == {}


SAVING_OFTEN = (
    "from gguf_mla import __main__; from gguf_mla.stream import saving; saving.SAVE_SECONDS = 0.1; __main__.run()"
)


def test_ctrl_c_stops_and_says_how_to_go_on(tmp_path: Path) -> None:
    checkpoint = bulk.write(tmp_path / "model", "v3fp8", layers=2, experts=16, tokenizer="bundled")
    arguments = ["convert", str(checkpoint), str(tmp_path / "out.gguf"), "--type", "IQ3_S", "--threads", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", SAVING_OFTEN, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=command.environment(),
    )
    journal = tmp_path / "out.gguf.journal"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert re.search(r"interrupted; .* of .* are on the disk. Run the same command again to go on from there\.", said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.gguf.journal", "out.gguf.partial"]
    answer = command.start(*arguments).communicate()[0]
    assert "of it taken over" in answer
    assert not journal.exists()


def test_an_interrupt_does_not_wait_for_a_thread_that_is_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, went_on = threading.Event(), threading.Event()

    interrupt = iter([signal.SIGINT])

    def stuck(*_: object) -> int:
        if (number := next(interrupt, None)) is not None:
            os.kill(os.getpid(), number)
        release.wait(60)
        went_on.set()
        return 0

    monkeypatch.setattr(worker, "write", stuck)
    monkeypatch.setattr(threads, "GRACE_SECONDS", 0.2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        answer = command.gguf_mla("convert", hub.BUNDLED, tmp_path / "out.gguf", "--threads", "2")
    finally:
        signal.signal(signal.SIGINT, before)
    assert not went_on.is_set()
    release.set()
    assert (answer.status, list(tmp_path.iterdir())) == (130, [])


def test_the_lock_of_a_file_that_got_its_name_meanwhile_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.gguf"
    real, calls = platform.lock, iter(range(9))

    def lock(fd: int) -> bool:
        if next(calls) == 0:  # the other process finishes between our opening and our lock
            partial_path(out).write_bytes(b"complete")
            partial_path(out).rename(out)
        return real(fd)

    monkeypatch.setattr(platform, "lock", lock)
    with OutputFile(out, 4) as file:
        file.write(np.frombuffer(b"ours", np.uint8), 0)
        assert out.read_bytes() == b"complete"
        assert file.path.read_bytes() == b"ours"
