"""Kernels compiled before they are needed, side by side: numba compiles one at a time in a process, so others help.

A helper is a process that compiles what it is told into the cache on disk (`codec.helper`). It is called when the first
kernel turns out not to be there. What it leaves undone, whatever has happened to it, is compiled here.
"""

from __future__ import annotations

import contextlib
import json
import os
import pkgutil
import subprocess
import sys
import threading
from collections import deque
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from gguf_mla import ggtypes
from gguf_mla.codec import compiling
from gguf_mla.codec.encoding import GGML, choose
from gguf_mla.codec.on_cpu import WORTH_A_KERNEL
from gguf_mla.codec.rows import decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Progress = Callable[[int, int], object]

HELPER = "gguf_mla.codec.helper"
MOST = 8  # helpers: each takes a quarter of a GiB
POLL_SECONDS = 0.1  # an interrupt that comes just before this process waits does not end the wait


@dataclass(frozen=True)
class Need:
    """A kernel that a run will need: plain data that another process understands.

    purpose    what it is for, as people are told
    function   "module:name" of what has it compiled or loaded, with `arguments`
    """

    purpose: str
    function: str
    arguments: tuple[str | bool, ...] = ()

    @property
    def cost(self) -> float:
        """Tell which takes longer to compile: searches of types of few bits."""
        if self.function != _name(encode_one):
            return 0
        kind = ggtypes.by_name(str(self.arguments[0]))
        return kind.block / kind.bytes + kind.block / 512

    def meet(self) -> None:
        """Have the kernel in this process, from the disk or the compiler."""
        pkgutil.resolve_name(self.function)(*self.arguments)


def to_encode(type_name: str, *, weighted: bool = False, search: str = GGML) -> Need:
    """Return what encoding to a type needs; InputError if it cannot be encoded so. Of floats: from other floats."""
    way = choose(ggtypes.by_name(type_name), search, weighted=weighted)
    return Need(way.type.name, _name(encode_one), (way.type.name, way.weighted, way.search))


def to_decode(type_name: str) -> Need:
    """Return what decoding a type needs."""
    name = ggtypes.by_name(type_name).name
    return Need(name, _name(decode_one), (name,))


def _name(function: Callable[..., None]) -> str:
    return f"{function.__module__}:{function.__name__}"


def encode_one(type_name: str, weighted: bool, search: str) -> None:
    """Encode a block of zeros, or as many floats as are worth a kernel."""
    kind = ggtypes.by_name(type_name)
    dtype = np.float16 if type_name == "F32" else np.float32  # not itself: that would be a copy
    x = np.zeros((1, WORTH_A_KERNEL if kind.block == 1 else kind.block), dtype)
    encode(x, type_name, importance=np.ones(x.shape[1], np.float32) if weighted else None, search=search)


def decode_one(type_name: str) -> None:
    """Decode a block of zeros, or as many floats as are worth a kernel."""
    kind = ggtypes.by_name(type_name)
    decode(np.zeros((1, kind.bytes * (WORTH_A_KERNEL if kind.block == 1 else 1)), np.uint8), type_name)


def meet(needs: Iterable[Need], processes: int, progress: Progress = lambda _done, _total: None) -> None:
    """Have every kernel on disk or in this process, compiled by at most so many processes.

    `progress` is called with how many there are and how many are needed: when the first has to be compiled, and from
    then on when one is there, from any thread. Nothing is left running, whatever ends this.
    """
    with _Crew(needs, processes, progress) as crew:
        crew.work()


class _Crew:
    """This process and its helpers, who take from both ends of one list, so that what is alike stays together.

    Kernels that search alike cost alike, and the second is half as much where the first was compiled.
    """

    def __init__(self, needs: Iterable[Need], processes: int, progress: Progress) -> None:
        self._waiting = deque(sorted(dict.fromkeys(needs), key=lambda need: -need.cost))
        self._total, self._done, self._progress = len(self._waiting), 0, progress
        self._lock, self._compiling = threading.Lock(), False
        self._places = min(processes - 1, MOST)
        self._helpers: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []

    def work(self) -> None:
        """Do what is to be done, and wait for the helpers; what one gives back is done here."""
        with compiling.heard_by(self._called):
            while self._waiting or self._threads:
                while (need := self._take(self._waiting.popleft)) is not None:
                    need.meet()
                    self._note()
                if self._threads:
                    self._threads[-1].join(POLL_SECONDS)
                    self._threads = [thread for thread in self._threads if thread.is_alive()]

    def _take(self, one: Callable[[], Need]) -> Need | None:
        with self._lock:
            return one() if self._waiting else None

    def _note(self) -> None:
        with self._lock:
            self._done += 1
            if self._compiling:
                self._progress(self._done, self._total)

    def _called(self, _purpose: str) -> None:
        """Hear that this process compiles a kernel; at the first, call helpers for what is left."""
        if self._compiling:
            return
        self._compiling = True
        self._progress(self._done, self._total)
        for _ in range(min(self._places, len(self._waiting)) if _can_help() else 0):
            with contextlib.suppress(OSError):
                self._helpers.append(_start())
                self._threads.append(threading.Thread(target=self._deal, args=(self._helpers[-1],), daemon=True))
                self._threads[-1].start()

    def _deal(self, helper: subprocess.Popen[bytes]) -> None:
        """Hand one thing after the other to a helper; take back what it was at when it ended."""
        while (need := self._take(self._waiting.pop)) is not None:
            if not _asked(helper, need):
                self._waiting.append(need)
                return
            self._note()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()
        for helper in self._helpers:
            helper.kill()
        for thread in self._threads:
            thread.join()  # it sees that its helper has ended
        for helper in self._helpers:
            helper.__exit__(None, None, None)  # waits for it, and closes the pipes


def _asked(helper: subprocess.Popen[bytes], need: Need) -> bool:
    """Whether a helper has compiled a kernel; it has not if it has ended."""
    if helper.stdin is None or helper.stdout is None:
        return False
    try:
        helper.stdin.write(json.dumps(astuple(need)).encode() + b"\n")
        helper.stdin.flush()
        return helper.stdout.read(1) == b"\n"
    except (OSError, ValueError):
        return False


def _can_help() -> bool:
    """Whether a helper could leave anything: there is a Python to start, and a place on disk."""
    from gguf_mla.codec import kernel_cache  # noqa: PLC0415 - numba, which is there by now

    return bool(sys.executable) and not getattr(sys, "frozen", False) and kernel_cache.keeps()


def _start() -> subprocess.Popen[bytes]:
    """Start a helper that runs this very package; it hears neither Ctrl-C nor what we are told."""
    from gguf_mla.codec import kernel_cache  # noqa: PLC0415 - numba again

    places = [str(kernel_cache.PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    return subprocess.Popen(  # noqa: S603 - this interpreter, this package
        [sys.executable, "-P", "-m", HELPER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        bufsize=0,
    )
