"""A directory with a few small files, and what tests of the guard do there: commands that have to change nothing."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.container.reader import open_gguf
from tests.support import command, crash, legacy
from tests.support.crash import Job, content
from tests.support.matrices import write_imatrix

if TYPE_CHECKING:
    from collections.abc import Callable

FOREIGN = b"somebody's only copy" * 1000
# What a run that writes m.gguf creates, replaces or removes.
TOUCHED = ("m.gguf", "m.gguf.partial", "m.gguf.journal", "m.gguf.sha256", "m.gguf.sha256.partial")
BESIDE = TOUCHED[1:]


def fill(directory: Path, pristine: Path) -> None:
    """Write q8.gguf, other.gguf of the same size, bf16.gguf, legacy.gguf and a matrix for that, leg.gguf."""
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


def refused(*arguments: Any, status: int = 2, says: str = "") -> str:
    """Run a command that has to change nothing that is there, and to leave nothing."""
    before = content(Path())
    answer = command.gguf_mla(*arguments)
    assert answer.status == status, answer.output
    assert says in answer.output
    assert content(Path()) == before
    return answer.output


def done(*arguments: Any) -> str:
    """Run a command that has to succeed."""
    answer = command.gguf_mla(*arguments)
    assert answer.status == 0, answer.output
    return answer.output


def bound(name: str) -> None:
    """Leave a socket."""
    with socket.socket(socket.AF_UNIX) as made_here:
        made_here.bind(name)


KINDS: dict[str, Callable[[str], object]] = {
    "pipe": os.mkfifo,
    "device": lambda name: os.mknod(name, 0o20666, os.makedev(1, 3)),
    "socket": bound,
    "directory": os.mkdir,
    "broken link": lambda name: Path(name).symlink_to("nowhere"),
}


COPY = Job(("quantize", "q8.gguf", "m.gguf", "COPY", "--quiet"))


def killed_while_naming() -> None:
    """Leave a finished file under its name, and a journal that says so."""
    total = crash.operations(lambda: COPY.run(Path()))
    Path("m.gguf").unlink()
    assert crash.killed_at(total, lambda: COPY.run(Path())) == -signal.SIGKILL
    assert Path("m.gguf.journal").exists()
    assert Path("m.gguf").exists()
