"""More files than may be open at once: each is closed for others and opened again, and stays the same file."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gguf_mla.container.splits import open_gguf_parts, part_paths
from gguf_mla.errors import GgufMlaError
from gguf_mla.files import descriptors, output
from gguf_mla.files import input as inputs
from gguf_mla.files.descriptors import Descriptor, Pool
from gguf_mla.files.input import InputFile
from gguf_mla.files.output import OutputFile
from tests.quantize.test_noteworthy import model
from tests.support.command import command, environment

PARTS, FILES = 200, 100  # as 1101 parts where 1024 files may be open


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Pool:
    """At most two files may be open and idle."""
    pool = Pool(2)
    for module in (inputs, output):
        monkeypatch.setattr(module, "POOL", pool)
        monkeypatch.setattr(module, "Descriptor", lambda number, reopen: Descriptor(number, reopen, pool))
    return pool


def open_now() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_files_are_read_though_few_may_be_open(tmp_path: Path, few: Pool) -> None:
    before = open_now()
    files = []
    for number in range(9):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 10)
        files.append(InputFile(tmp_path / str(number)))
    assert open_now() <= before + few.limit
    for _ in range(2):
        assert [file.read(3, 2).tolist() for file in files] == [[number] * 2 for number in range(9)]
    for file in files:
        file.close()
    assert open_now() == before


def test_a_closed_file_stays_closed(tmp_path: Path, few: Pool) -> None:
    (tmp_path / "a").write_bytes(b"a")
    file = InputFile(tmp_path / "a")
    few.make_room()
    file.close()
    with pytest.raises(GgufMlaError, match="Bad file descriptor"):
        file.read(0, 1)


def test_another_file_of_the_same_name_is_not_read(tmp_path: Path, few: Pool) -> None:
    files = []
    for name in "abc":
        (tmp_path / name).write_bytes(b"12345")
        files.append(InputFile(tmp_path / name))
    assert len(few._idle) == 2  # the first is closed
    (tmp_path / "new").write_bytes(b"12345")
    (tmp_path / "new").rename(tmp_path / "a")
    with pytest.raises(GgufMlaError, match="changed or replaced"):
        files[0].read(0, 1)


def test_outputs_are_written_and_named_though_few_may_be_open(tmp_path: Path, few: Pool) -> None:
    files = [OutputFile(tmp_path / str(number), 8) for number in range(7)]
    for offset in (4, 0):
        for number, file in enumerate(files):
            file.write(np.full(4, number, np.uint8), offset)
    for file in files:
        file.finish()
    for file in files:
        file.commit()
        file.__exit__()
    assert [(tmp_path / str(number)).read_bytes() for number in range(7)] == [bytes([n]) * 8 for n in range(7)]
    assert len(few._idle) == 0


def test_an_output_that_was_taken_away_meanwhile_is_noticed(tmp_path: Path, few: Pool) -> None:
    files = [OutputFile(tmp_path / str(number), 8) for number in range(4)]
    (tmp_path / "0.partial").unlink()
    (tmp_path / "0.partial").write_bytes(b"another's")
    with pytest.raises(GgufMlaError, match="was taken away"):
        files[0].write(np.zeros(4, np.uint8), 0)
    for file in files:
        file.__exit__()
    assert (tmp_path / "0.partial").read_bytes() == b"another's"
    assert few.limit == 2


def test_what_is_in_use_is_never_closed(tmp_path: Path, few: Pool) -> None:
    files = []
    for name in "abcde":
        (tmp_path / name).write_bytes(b"x")
        files.append(InputFile(tmp_path / name))
    assert few.limit == 2
    with files[0].opened() as first, files[1].opened() as second, files[2].opened() as third:
        files[3].read(0, 1)
        files[4].read(0, 1)
        assert all(os.pread(fd, 1, 0) == b"x" for fd in (first, second, third))


def limited(*arguments: object, files: int) -> str:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(), preexec_fn=limit, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_more_parts_than_a_process_may_open(tmp_path: Path) -> None:
    tensors = {f"blk.0.t{number}.weight": np.full((1, 32), number, np.float32) for number in range(PARTS)}
    path = model(tmp_path / "m.gguf", tensors, layers=1)
    limited("split", path, tmp_path / "s.gguf", "--split-max-tensors", 1, "--quiet", files=FILES)
    first, *_ = parts = part_paths(tmp_path / "s.gguf", PARTS)
    assert all(part.is_file() for part in parts)
    limited("merge", first, tmp_path / "merged.gguf", "--quiet", files=FILES)
    assert (tmp_path / "merged.gguf").stat().st_size == path.stat().st_size
    limited("quantize", first, tmp_path / "q.gguf", "Q8_0", "--keep-split", "--quiet", files=FILES)
    found = open_gguf_parts(part_paths(tmp_path / "q.gguf", PARTS)[0])
    assert [tensor.decoded()[0, 0] for tensor in found.tensors.values()] == pytest.approx(range(PARTS), rel=1e-2)


def test_the_limit_is_raised_as_far_as_the_system_allows() -> None:
    code = (
        "import resource; from gguf_mla.files import platform; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard)); assert platform.open_files() >= min(hard, 1000);"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); assert platform.open_files() == 100"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert descriptors.POOL.limit >= descriptors.LEAST
