"""Runs of the command that die on purpose: at the n-th thing they do to the disk, or after some time.

Each run is a fork of this process, in which every kernel is compiled already, so a kill costs a tenth of a second.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.cli.main import main
from gguf_mla.container.reader import open_gguf
from gguf_mla.files import platform
from gguf_mla.stream import chunks, saving
from tests.support import hub
from tests.support.command import convert
from tests.support.hub import BUNDLED
from tests.support.legacy import write_variant
from tests.support.matrices import write_imatrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

# What touches the disk, but sync_data: how often that is called depends on the clock.
OPERATIONS = (
    (platform, "write_at"),
    (platform, "copy_range"),
    (platform, "sync_directory"),
    (os, "ftruncate"),
    (os, "link"),
    (os, "replace"),
    (os, "unlink"),
)
# The jobs of `jobs`: they write enough to fill a disk.
STREAMED = ("convert", "quantize", "copy", "repack", "split")


@dataclass(frozen=True)
class Job:
    """A command and what it writes; {out} in the arguments is the directory of the outputs."""

    arguments: tuple[str, ...]

    def run(self, out: Path, *more: str) -> None:
        """Run it in this process."""
        main([argument.format(out=out) for argument in (*self.arguments, *more)], "gguf-mla", standalone_mode=False)


def jobs(directory: Path) -> dict[str, Job]:
    """The kinds of jobs that are crashed; `directory` is a place for the GGUF files they begin with."""
    plain, quantized = directory / "plain.gguf", directory / "quantized.gguf"
    convert(BUNDLED, plain, "BF16")
    convert(BUNDLED, quantized, "Q8_0")
    packed = hub.write(directory / "packed", "kimi-int4", num_hidden_layers=2, n_routed_experts=4)
    several = ("--type", "F16", "--type", "Q8_0", "--split-max-tensors", "26", "--checksums")
    return {
        "convert": Job(("convert", str(BUNDLED), "{out}/out.gguf", "--type", "Q8_0", "--quiet")),
        "quantize": Job(("quantize", str(plain), "{out}/out.gguf", "Q4_K_M", "--quiet")),
        "copy": Job(("quantize", str(quantized), "{out}/out.gguf", "COPY", "--quiet")),
        "repack": Job(("convert", str(packed), "{out}/out.gguf", "--quiet")),
        "split": Job(("convert", str(BUNDLED), "{out}", *several, "--quiet")),
    }


def all_jobs(directory: Path) -> dict[str, Job]:
    """Every command that writes, as a job; those of `jobs` among them."""
    found = jobs(directory)
    plain, quantized, legacy = (directory / f"{name}.gguf" for name in ("plain", "quantized", "legacy"))
    write_variant(plain, legacy, "legacy")
    ranks = {t.name: t.shape[-1] for t in open_gguf(legacy).tensors.values() if ".attn_kv_b." in t.name}
    entries = {name: (np.ones((1, rank)), np.ones(1)) for name, rank in ranks.items()}
    write_imatrix(directory / "matrix.gguf", entries, datasets=["ones"], chunk_count=1, chunk_size=512)
    Job(("split", str(quantized), "{out}/parts.gguf", "--split-max-tensors", "26", "--quiet")).run(directory)
    first = min(directory.glob("parts-*.gguf"))
    out, quiet = "{out}/out.gguf", "--quiet"
    report = ("--report", "{out}/report.html", "--level", "structure")
    return found | {
        "several": Job(("convert", str(BUNDLED), "{out}", "--type", "BF16", "--type", "Q8_0", "--checksums", quiet)),
        "cut": Job(("split", str(quantized), out, "--split-max-tensors", "26", "--checksums", quiet)),
        "merge": Job(("merge", str(first), out, quiet)),
        "upgrade": Job(("upgrade", str(legacy), out, quiet)),
        "matrix": Job(("upgrade", str(legacy), out, "--imatrix", str(directory / "matrix.gguf"), quiet)),
        "downgrade": Job(("downgrade", str(quantized), out, quiet)),
        "report": Job(("verify", str(BUNDLED), str(quantized), *report, quiet)),
    }


def content(directory: Path) -> dict[str, bytes]:
    """Every file of a directory by name."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@contextmanager
def small_steps() -> Iterator[None]:
    """Small chunks and constant saving, so that a model of a few megabytes has many instants to die at."""
    before = chunks.CHUNK_VALUES, saving.SAVE_SECONDS
    chunks.CHUNK_VALUES, saving.SAVE_SECONDS = 1 << 15, 0.0
    try:
        yield
    finally:
        chunks.CHUNK_VALUES, saving.SAVE_SECONDS = before


@contextmanager
def constant_saving() -> Iterator[None]:
    """Saving all the time, but tasks as they are: processes that share a plan need the same ones."""
    before, saving.SAVE_SECONDS = saving.SAVE_SECONDS, 0.0
    try:
        yield
    finally:
        saving.SAVE_SECONDS = before


def forked_together(tasks: Sequence[Callable[[], object]]) -> list[int]:
    """Do several things at the same time, each in a fork, and return their exit statuses, as `forked` does."""
    children = [_fork(task) for task in tasks]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def forked(task: Callable[[], object]) -> int:
    """Do something in a fork and return its exit status, negative for a signal; a failure of the task is status 1."""
    return forked_together([task])[0]


def _fork(task: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            task()
            status = 0
        finally:
            os._exit(status)
    return child


def operations(task: Callable[[], object]) -> int:
    """Return how many times a task touches the disk; it is really done."""
    count = 0

    def counting(_: int) -> None:
        nonlocal count
        count += 1

    with _watched(counting):
        task()
    return count


def killed_at(number: int, task: Callable[[], object]) -> int:
    """Do a task in a fork that dies before its n-th touch of the disk; the first half of a write still happens."""

    def dying() -> None:
        seen = iter(range(1, number + 1))
        with _watched(lambda _: next(seen, number) == number and os.kill(os.getpid(), signal.SIGKILL)):
            task()

    return forked(dying)


def killed_after(seconds: float, task: Callable[[], object]) -> int:
    """Do a task in a fork that dies after a time."""

    def dying() -> None:
        threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        task()

    return forked(dying)


@contextmanager
def full_after(nbytes: int) -> Iterator[None]:
    """A disk that takes so many bytes more and then is full."""
    left, write, lock = nbytes, platform.write_at, threading.Lock()

    def write_at(fd: int, data: Any, offset: int) -> int:
        nonlocal left
        with lock:
            count = min(left, len(data))
            left -= count
        if count == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[:count], offset)

    copy, platform.write_at, platform.copy_range = platform.copy_range, write_at, lambda *_: 0
    try:
        yield
    finally:
        platform.write_at, platform.copy_range = write, copy


@contextmanager
def _watched(watch: Callable[[int], object]) -> Iterator[None]:
    """Call `watch` in the middle of every write and before every other touch of the disk."""
    real = {name: getattr(module, name) for module, name in OPERATIONS}

    def write_at(fd: int, data: Any, offset: int) -> int:
        half = real["write_at"](fd, data[: len(data) // 2], offset)
        watch(fd)
        return half + real["write_at"](fd, data[half:], offset + half)

    def before(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            watch(0)
            return real[name](*arguments, **named)

        return call

    try:
        for module, name in OPERATIONS:
            setattr(module, name, write_at if name == "write_at" else before(name))
        yield
    finally:
        for module, name in OPERATIONS:
            setattr(module, name, real[name])
