"""The kernel cache costs a compilation, never a run, and nobody else's file is ever loaded."""

from __future__ import annotations

import errno
import functools
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import pytest

from gguf_mla.codec import compiling, kernel_cache
from gguf_mla.codec.compilation import HelperCompiler, KernelCompiler
from gguf_mla.codec.kernel_store import SUFFIX, Store, _digest

if TYPE_CHECKING:
    from collections.abc import Callable

STRANGER = 65534
TELLS = "kernels cannot be kept"
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
posix = pytest.mark.skipif(os.name == "nt", reason="owners and modes are POSIX's")


def twice(x: int) -> int:
    return 2 * x


def thrice(x: int) -> int:
    return 3 * x


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels are kept in a test; nothing has been said yet."""
    place = tmp_path / "base" / "kernels"
    monkeypatch.setattr(kernel_cache, "stores", lambda: (Store(place),))
    monkeypatch.setattr(kernel_cache, "_complaints", [])
    return place


def hits(function: Callable[[int], int] = twice) -> int:
    """Run a kernel in a new dispatcher, as a new process would; whether it came from the disk."""
    dispatcher = kernel_cache.kernel(nogil=True)(function)
    assert dispatcher(21) == function(21)
    return sum(dispatcher.stats.cache_hits.values())


def only(directory: Path) -> Path:
    (path,) = directory.glob(f"*{SUFFIX}")
    return path


def entry(directory: Path) -> Path:
    """Compile a kernel, and return the file in which it is kept now."""
    assert hits() == 0
    return only(directory)


def test_a_kernel_comes_back(directory: Path) -> None:
    path = entry(directory)
    assert hits() == 1
    assert [path] == list(directory.iterdir())


def test_two_kernels_of_one_directory(directory: Path) -> None:
    assert [hits(twice), hits(thrice), hits(twice), hits(thrice)] == [0, 0, 1, 1]
    assert len(list(directory.iterdir())) == 2


def flipped(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "one byte": lambda content: content[:1],
    "a digest and nothing": lambda content: content[:32],
    "half": lambda content: content[: len(content) // 2],
    "the last byte lost": lambda content: content[:-1],
    "a byte more": lambda content: content + b"\0",
    "zeros": lambda content: bytes(len(content)),
    "a flipped digest": lambda content: flipped(content, 0),
    "a flipped first byte": lambda content: flipped(content, 32),
    "a flipped middle": lambda content: flipped(content, len(content) // 2),
    "a flipped last byte": lambda content: flipped(content, -1),
    "text": lambda _: b"hello\n" * 100,
    "a bare pickle": lambda _: pickle.dumps(("0.68.1", {})),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_entry_is_compiled_again_and_replaced(
    kind: str, directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = entry(directory)
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    assert [hits(), hits()] == [0, 1]
    assert capfd.readouterr() == ("", "")


def test_whole_bytes_that_are_no_kernel_are_compiled_again(directory: Path) -> None:
    """A digest holds, but numba makes nothing of what it is about."""
    path = entry(directory)
    key = key_of(twice)
    for payload in (b"", b"\x80", pickle.dumps(None), pickle.dumps(("a", "b")), pickle.dumps(list(range(20)))):
        path.write_bytes(_digest(key, payload) + payload)
        assert hits() == 0


def key_of(function: Any) -> bytes:
    dispatcher = numba.njit(function)
    dispatcher.targetctx.refresh()
    _, key = kernel_cache.KernelCache(function)._names((numba.int64,), dispatcher.targetctx.codegen())
    return key


@pytest.mark.parametrize("what", ["COMPILERS", "source_stamp", "_content"])
def test_an_entry_of_another_program_is_replaced(what: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry(directory)
    with monkeypatch.context() as other:
        other.setattr(kernel_cache, what, "numba 0" if what == "COMPILERS" else lambda *_: "another")
        assert [hits(), hits()] == [0, 1]


def test_another_kernels_entry_under_this_name_is_not_taken(directory: Path) -> None:
    path = entry(directory)
    hits(thrice)
    (other,) = set(directory.iterdir()) - {path}
    path.write_bytes(other.read_bytes())
    assert [hits(), hits()] == [0, 1]


class Planted:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


def plant(path: Path, mark: Path) -> None:
    """Put an entry in which everything is right, digest and key too, in place of a kernel."""
    payload = pickle.dumps(Planted(mark))
    path.write_bytes(_digest(key_of(twice), payload) + payload)


def test_the_planted_pickle_would_run(directory: Path, tmp_path: Path) -> None:
    """Of this user's own files it is believed: the tests below would notice if it were loaded."""
    plant(entry(directory), tmp_path / "mark")
    hits()
    assert (tmp_path / "mark").exists()


def of_a_stranger(path: Path) -> None:
    os.chown(path, STRANGER, -1)


def directory_of_a_stranger(path: Path) -> None:
    os.chown(path.parent, STRANGER, -1)


def a_link(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    path.parent.rename(elsewhere)
    path.parent.symlink_to(elsewhere)


def mode(number: int) -> Callable[[Path], None]:
    return lambda path: path.chmod(number)


def directory_mode(number: int) -> Callable[[Path], None]:
    return lambda path: path.parent.chmod(number)


FILES = [
    pytest.param(mode(0o666), id="all can write"),
    pytest.param(mode(0o660), id="the group can write"),
    pytest.param(of_a_stranger, id="a stranger's", marks=as_root),
]
DIRECTORIES = [
    pytest.param(directory_mode(0o777), id="all can write"),
    pytest.param(directory_mode(0o1777), id="like that for temporary files"),
    pytest.param(directory_mode(0o770), id="the group can write"),
    pytest.param(a_link, id="a link"),
    pytest.param(directory_of_a_stranger, id="a stranger's", marks=as_root),
]


@posix
@pytest.mark.parametrize("spoil", FILES)
def test_a_file_that_another_user_could_have_written_is_replaced_and_not_loaded(
    spoil: Callable[[Path], None], directory: Path, tmp_path: Path
) -> None:
    path = entry(directory)
    plant(path, tmp_path / "mark")
    spoil(path)
    assert [hits(), hits()] == [0, 1]
    assert not (tmp_path / "mark").exists()


@posix
@pytest.mark.parametrize("spoil", DIRECTORIES)
def test_nothing_is_loaded_from_a_directory_that_others_can_write_which_is_said_once(
    spoil: Callable[[Path], None], directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = entry(directory)
    plant(path, tmp_path / "mark")
    spoil(path)
    planted = path.read_bytes()
    assert [hits(), hits(thrice), hits()] == [0, 0, 0]
    assert not (tmp_path / "mark").exists()
    assert path.read_bytes() == planted
    said = capfd.readouterr().err
    assert said.count("\n") == said.count(TELLS) == 1
    assert "others can write to it" in said


def fails(number: int) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["mkdir", "touch", "write_bytes", "replace"])
def test_a_disk_that_cannot_be_written_costs_a_compilation(
    call: str, number: int, directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Path, call, fails(number))
        assert [hits(), hits(thrice)] == [0, 0]
    said = capfd.readouterr().err
    assert said.count("\n") == said.count(TELLS) == 1
    assert os.strerror(number) in said
    assert not directory.exists() or not list(directory.iterdir())  # nor a temporary file


def test_a_kernel_is_read_where_nothing_can_be_written(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry(directory)
    monkeypatch.setattr(Path, "touch", fails(errno.EROFS))
    monkeypatch.setattr(Path, "mkdir", fails(errno.EROFS))
    assert hits() == 1


@pytest.mark.parametrize("blocker", ["base", "kernels"])
def test_a_file_where_the_directory_should_be(blocker: str, directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = directory if blocker == "kernels" else directory.parent
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    assert hits() == 0
    assert capfd.readouterr().err.count(TELLS) == 1


@posix
@pytest.mark.parametrize("make", ["mkdir", "mkfifo"])
def test_what_is_not_a_file_is_not_read(make: str, directory: Path) -> None:
    path = entry(directory)
    path.unlink()
    getattr(os, make)(path)
    assert hits() == 0


def test_the_next_place_is_taken_where_the_first_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    places = (Store(tmp_path / "file" / "kernels"), Store(tmp_path / "second"))
    monkeypatch.setattr(kernel_cache, "stores", lambda: places)
    assert [hits(), hits()] == [0, 1]
    assert capfd.readouterr() == ("", "")


def test_no_place_at_all(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kernel_cache, "stores", lambda: ())
    monkeypatch.setattr(kernel_cache, "_complaints", [])
    assert [hits(), hits()] == [0, 0]
    assert capfd.readouterr().err.count(TELLS) == 1


def stores(monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[Path]:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return [store.directory for store in kernel_cache.stores.__wrapped__()]


def test_the_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel_cache.config, "CACHE_DIR", "")
    beside, home = stores(monkeypatch, HOME=str(tmp_path))
    assert beside.parent == kernel_cache.PACKAGE / "__pycache__"
    assert home.is_relative_to(tmp_path) or sys.platform != "linux"
    monkeypatch.setattr(kernel_cache.config, "CACHE_DIR", "relative")
    assert [place.parent for place in stores(monkeypatch)] == [Path("relative").absolute()]


def test_a_home_that_nobody_knows_is_not_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cache.config, "CACHE_DIR", "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user without HOME and without an entry
    assert [place.parent for place in stores(monkeypatch)] == [kernel_cache.PACKAGE / "__pycache__"]


PROGRAM = """
import sys
import numpy as np
from gguf_mla import codec
from gguf_mla.errors import MachineError
try:
    print(codec.encode(np.ones((1, 64), "f4"), "Q1_0").sum() if len(sys.argv) < 2 else "")
except MachineError as error:
    sys.exit(f"{error.status}: {error}")
"""


def process(**environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    line = [sys.executable, "-c", PROGRAM.replace("64", "128")]
    return subprocess.run(line, env=inherited | environment, capture_output=True, text=True, check=False)


@posix
def test_a_chosen_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = process(NUMBA_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert done.returncode == 0
    assert int(done.stdout) > 0
    assert done.stderr.count("\n") == done.stderr.count(TELLS) == 1


LATER = """
import sys
import numpy as np
from gguf_mla import codec
codec.encode(np.ones((1, 128), "f4"), "Q1_0")
print([name for name in sys.modules if name in ("numba.np.linalg", "numba.typed.typeddict")])
"""


def test_a_run_that_finds_its_kernels_imports_nothing_that_compiles(tmp_path: Path) -> None:
    run = functools.partial(subprocess.run, [sys.executable, "-c", LATER], capture_output=True, text=True, check=True)
    first, second = (run(env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}) for _ in range(2))
    assert "numba.np.linalg" in first.stdout
    assert second.stdout == "[]\n"


def test_no_home_and_other_locators(tmp_path: Path) -> None:
    done = process(NUMBA_CACHE_DIR=str(tmp_path), NUMBA_CACHE_LOCATOR_CLASSES="no.such.Locator")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(tmp_path.rglob(f"*{SUFFIX}"))) == 1


def test_a_compiler_that_is_switched_off_is_a_sentence(tmp_path: Path) -> None:
    done = process(NUMBA_DISABLE_JIT="1", NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stderr.startswith("3: the kernels must be compiled, and NUMBA_DISABLE_JIT forbids it.")
    assert "Traceback" not in done.stderr


def test_kernels_of_all_rooms_go_through_this_door() -> None:
    """`numba.njit` is called here alone."""
    for room in (kernel_cache.PACKAGE, kernel_cache.PACKAGE.parent / "verify"):
        for path in room.rglob("*.py"):
            text = path.read_text()
            assert path.name == "kernel_cache.py" or "njit(" not in text, path
            assert "cache=True" not in text or path.name == "kernel_cache.py", path


def test_who_waits_for_a_compilation_is_told_for_what_and_once(directory: Path) -> None:
    told: list[str] = []
    cache = functools.partial(kernel_cache.KernelCache, purpose="Q4_K")
    with compiling.heard_by(told.append):
        for _ in range(2):
            kernel_cache.keep_on_disk(kernel_cache.compiler(nogil=True)(twice), cache)(21)
        assert told == ["compiling kernels for Q4_K, once"]
    only(directory)


def test_a_kernel_takes_in_what_its_helpers_call(directory: Path) -> None:
    helper = kernel_cache.compiler(no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=HelperCompiler)
    inner = helper(thrice)
    middle = helper(lambda x: inner(x) + 1)
    kernel = kernel_cache.compiler(pipeline_class=KernelCompiler)(lambda x: middle(x) + inner(x))
    assert kernel(7) == 43
    assert not directory.exists()


def test_amds_own_instructions_are_not_used(directory: Path) -> None:
    entry(directory)
    dispatcher = kernel_cache.kernel(nogil=True)(twice)
    assert "+sse4a" not in dispatcher.targetctx.codegen().magic_tuple()[2]


def test_arrays_of_other_layouts_are_other_kernels(directory: Path) -> None:
    def total(x: Any) -> float:
        found = 0.0
        for value in x:
            found += value
        return found

    values = np.ones(4, np.float32)
    closed = np.ones(4, np.float32)
    closed.setflags(write=False)
    for x in (values, values[::2], closed):
        assert kernel_cache.kernel(nogil=True)(total)(x) == x.size
    assert len(list(directory.iterdir())) == 3
