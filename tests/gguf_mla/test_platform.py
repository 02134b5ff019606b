"""What only some systems have is in one file, and everything goes on where it is missing or refuses."""

from __future__ import annotations

import ast
import errno
import fcntl
import gc
import os
import resource
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_mla.errors import InputError, MachineError
from gguf_mla.files import platform
from gguf_mla.files.input import InputFile
from gguf_mla.files.os_copy import copy_range
from gguf_mla.files.output import OutputFile, partial_path
from tests.support import command
from tests.support.hub import BUNDLED, REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PACKAGES = ("gguf_mla", "convert", "quantize", "verify")
# What other modules may use of `os`.
EVERYWHERE = {
    "O_CREAT", "O_RDWR", "PathLike", "W_OK", "X_OK", "_exit", "access", "close", "devnull", "dup", "environ",
    "fsdecode", "fspath", "fstat", "ftruncate", "getpid", "isatty", "kill", "listdir", "open", "path", "pathsep",
    "scandir", "sep", "strerror", "utime", "write",
}  # fmt: skip
NOT_EVERYWHERE = {"fcntl", "grp", "mmap", "msvcrt", "posix", "pwd", "resource", "syslog", "termios"}
OF_A_STATUS = {"st_blksize", "st_blocks", "st_flags", "st_rdev"}
PLACES = ("/proc", "/sys/", "/dev/", "/etc/")
CALLS = (
    "copy_file_range", "fdatasync", "posix_fadvise", "preadv", "pwrite", "sched_getaffinity", "sysconf", "wait4",
    "O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_DIRECTORY",
)  # fmt: skip
SENTENCE = "a sentence of thirty bytes, now"


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls of this system, also where the whole test run asks for the portable way."""
    monkeypatch.setattr(platform, "PORTABLE", False)


@pytest.fixture(params=["native", "portable"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, native: None) -> str:  # noqa: ARG001
    """Both ways of each function."""
    monkeypatch.setattr(platform, "PORTABLE", request.param == "portable")
    return request.param


def failing(number: int) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


# ----------------------------------------------------------------------------------------------------- one place for it


def special(tree: ast.AST) -> Iterator[str]:
    """What a module uses that some systems lack."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of_os = isinstance(node.value, ast.Name) and node.value.id == "os"
            if node.attr in OF_A_STATUS or (of_os and node.attr not in EVERYWHERE):
                yield node.attr
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in NOT_EVERYWHERE)
        elif isinstance(node, ast.ImportFrom) and node.module in NOT_EVERYWHERE | {"os"}:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(PLACES):
            yield node.value


def test_no_other_module_calls_what_some_systems_lack() -> None:
    paths = [path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")]
    found = {path: list(special(ast.parse(path.read_text(encoding="utf-8")))) for path in paths}
    own = found.pop(REPOSITORY / "gguf_mla/files/platform.py")
    assert own
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "line",
    ["os.sched_getaffinity(0)", "import mmap", "from os import pwrite", "a.st_blocks", "open('/proc/self/status')"],
)
def test_such_a_call_would_be_found(line: str) -> None:
    assert list(special(ast.parse(line)))


ELSEWHERE = f"""
import os, shutil, sys
for name in ("fcntl", "resource", "mmap"):
    sys.modules[name] = None
for name in {CALLS}:
    delattr(os, name)
from gguf_mla.__main__ import run
run()
"""


def test_a_system_without_all_that_writes_the_same_bytes(tmp_path: Path) -> None:
    command.convert(BUNDLED, tmp_path / "here.gguf", "Q8_0", "--checksums")
    command.convert(BUNDLED, tmp_path / "f16.gguf", "F16")
    for arguments in (
        ("convert", BUNDLED, tmp_path / "there.gguf", "--type", "Q8_0", "--checksums"),
        ("quantize", tmp_path / "f16.gguf", tmp_path / "copy.gguf", "COPY"),
        ("inspect", tmp_path / "there.gguf", "--verify"),
    ):
        line = [sys.executable, "-c", ELSEWHERE, *map(str, arguments)]
        done = subprocess.run(line, env=command.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "there.gguf").read_bytes() == (tmp_path / "here.gguf").read_bytes()
    assert (tmp_path / "copy.gguf").read_bytes() == (tmp_path / "f16.gguf").read_bytes()
    assert len(list(tmp_path.iterdir())) == 6


def test_the_environment_asks_for_the_portable_way(tmp_path: Path) -> None:
    code = "import os; os.preadv = os.pwrite = None; from gguf_mla.__main__ import run; run()"
    line = [sys.executable, "-c", code, "convert", str(BUNDLED), str(tmp_path / "out.gguf"), "--type", "BF16"]
    portable = command.environment() | {"GGUF_MLA_PORTABLE": "1"}
    done = subprocess.run(line, env=portable, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    command.convert(BUNDLED, tmp_path / "here.gguf", "BF16")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "here.gguf").read_bytes()


# --------------------------------------------------------------------------------------------- both ways do the same


@pytest.mark.usefixtures("way")
def test_threads_read_and_write_at_positions(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, (64, 4099), np.uint8)
    with OutputFile(tmp_path / "out", data.nbytes) as file:
        threads = [threading.Thread(target=file.write, args=(row, i * row.nbytes)) for i, row in enumerate(data)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        file.start_sync()
        file.finish()
        file.commit()
    found: dict[int, Any] = {}
    with InputFile(tmp_path / "out") as source:

        def read(i: int) -> None:
            source.will_read(i * 4099, 4099)
            found[i] = source.read(i * 4099, 4099)
            source.was_read(i * 4099, 4099)

        threads = [threading.Thread(target=read, args=(i,)) for i in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert np.array_equal(np.stack([found[i] for i in range(64)]), data)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("way")
def test_a_link_beside_an_output_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text(SENTENCE)
    partial_path(tmp_path / "out").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match="cannot be created"):
        OutputFile(tmp_path / "out", 4)
    assert (tmp_path / "victim").read_text() == SENTENCE


@pytest.mark.usefixtures("way")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="regular file"):
        InputFile(tmp_path / "pipe")


def test_an_open_file_is_closed_before_it_is_named_where_it_must_be(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, real = [], os.close
    monkeypatch.setattr(os, "close", lambda fd: closed.append(fd) or real(fd))
    call = "rename" if way == "portable" else "link"
    name, before = getattr(os, call), []
    monkeypatch.setattr(os, call, lambda *paths: before.append(fd in closed) or name(*paths))
    with OutputFile(tmp_path / "out", 4) as file:
        fd = file.fileno()
        file.finish()
        file.commit()
    assert before == [way == "portable"]
    assert closed == [fd] or way == "native"  # which also closes the directory that it syncs


def test_what_a_machine_is_said_to_have(way: str) -> None:
    assert 1 <= platform.cores() <= (os.cpu_count() or 1)
    assert platform.physical_memory() > 1 << 28
    assert (platform.physical_memory() == platform.MEMORY) >= (way == "portable")


def test_a_process_is_measured_where_that_can_be(way: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    peak = platform.wait(process)
    assert process.returncode == 3
    assert (peak > 1 << 20) == (way == "native")


def test_holes_take_no_room_where_that_is_known(way: str, tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out", 1 << 20) as file:
        os.ftruncate(file.fileno(), 1 << 20)
        assert file.missing == (1 << 20 if way == "native" else 0)


# ----------------------------------------------------------------------------------------- optional calls may fail


UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def written(path: Path) -> bytes:
    with OutputFile(path, len(SENTENCE)) as file:
        file.write(np.frombuffer(SENTENCE.encode(), np.uint8), 0)
        file.start_sync()
        file.finish()
        file.commit()
    return path.read_bytes()


@pytest.mark.parametrize("number", [*UNSUPPORTED, errno.EIO])
def test_advice_may_be_refused(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fadvise", failing(number))
    assert written(tmp_path / "out") == SENTENCE.encode()
    with InputFile(tmp_path / "out") as file:
        file.will_read(0, 9)
        file.was_read(0, 9)


@pytest.mark.parametrize("number", [*UNSUPPORTED, errno.EBADF, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_directory_may_not_be_synced(number: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(os, call)

    def of_a_directory(at: Any, *rest: Any) -> Any:
        return failing(number)() if os.path.isdir(at) else real(at, *rest)  # noqa: PTH112 - a path or a descriptor

    monkeypatch.setattr(os, call, of_a_directory)
    assert written(tmp_path / "out") == SENTENCE.encode()


def test_a_whole_run_ends_well_where_directories_are_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    command.convert(BUNDLED, tmp_path / "out.gguf", "Q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_a_directory_whose_disk_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(MachineError, match="writing failed"):
        written(tmp_path / "out")


@pytest.mark.parametrize("number", UNSUPPORTED)
def test_data_may_have_no_sync(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", failing(number))
    assert written(tmp_path / "out") == SENTENCE.encode()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EBADF])
@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_data_that_cannot_be_synced_is_said(
    number: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "PORTABLE", call == "fsync")
    monkeypatch.setattr(os, call, failing(number))
    with pytest.raises(MachineError):
        written(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [*UNSUPPORTED, errno.ENOLCK, errno.EBADF])
def test_locks_may_be_missing(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(number))
    assert written(tmp_path / "out") == SENTENCE.encode()


def test_a_lock_that_another_has_is_said(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out", 4), pytest.raises(InputError, match="another process"):
        OutputFile(tmp_path / "out", 4)


@pytest.mark.parametrize("number", [*UNSUPPORTED, errno.EXDEV, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.EIO])
def test_bytes_are_read_and_written_where_the_os_does_not_copy(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_text(SENTENCE)
    monkeypatch.setattr(os, "copy_file_range", failing(number))
    with InputFile(tmp_path / "source") as source, OutputFile(tmp_path / "out", 9) as target:
        copy_range(source, 2, target, 0, 9)
        target.finish()
        target.commit()
    assert (tmp_path / "out").read_text() == SENTENCE[2:11]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM])
def test_memory_may_be_unknown(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", failing(number))
    assert platform.physical_memory() == platform.MEMORY


@pytest.mark.parametrize("limit", [4000, None])
def test_a_file_that_would_be_too_large_is_said_at_once(
    limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    else:
        monkeypatch.setattr(os, "lseek", failing(errno.EINVAL))  # as on FAT beyond 4 GiB
    monkeypatch.setattr(platform, "write_at", failing(errno.EIO))
    answer = command.gguf_mla("convert", BUNDLED, tmp_path / "out.gguf", "--type", "Q8_0")
    assert answer.status == 3
    assert "File too large" in answer.output
    assert "give --split-max-size 4G" in answer.output
    assert not list(tmp_path.iterdir())


def test_a_file_that_became_too_large_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "write_at", failing(errno.EFBIG))
    with pytest.raises(MachineError, match="--split-max-size 4G"):
        written(tmp_path / "out.gguf")
    with pytest.raises(MachineError, match="allowed there: choose another place"):
        written(tmp_path / "out.gguf.states-0")  # which cannot be split


# -------------------------------------------------------------------------------------------- who closes an input


def descriptor_is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_an_input_is_closed_with_the_last_tensor_that_lies_in_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(SENTENCE)
    tensors = [InputFile(tmp_path / "file")] * 3
    fd = tensors[0].fileno()
    del tensors[1:]
    assert descriptor_is_open(fd)
    tensors.append(tensors)  # type: ignore[arg-type]  # a cycle, as an exception that is kept makes one
    del tensors
    gc.collect()
    assert not descriptor_is_open(fd)


def test_a_closed_input_is_not_read_any_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(SENTENCE)
    with InputFile(tmp_path / "file") as file:
        pass
    file.close()
    with pytest.raises(MachineError, match="reading failed"):
        file.read(0, 1)
