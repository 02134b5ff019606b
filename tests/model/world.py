"""The small world of the model: one directory, a command that writes two outputs into it, and a stranger.

The command writes one file and one split model from the same tensors, with checksums: three files of some hundred bytes
and a note to each. Everything that the stranger puts there is remembered, to see later that nobody has changed it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.cli.launch import launch
from gguf_mla.cli.options import RunOptions
from gguf_mla.container.values import string
from gguf_mla.plan import outputs
from gguf_mla.plan.jobs import Part, Plan, TensorJob
from gguf_mla.stream.run import Job
from tests.support.sources import Memory

if TYPE_CHECKING:
    from pathlib import Path

FILES = ("a.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf")
NOTES = tuple(f"{name}.sha256" for name in FILES)
FINAL = (*FILES, *NOTES)
DRAFTS = tuple(f"{name}.partial" for name in FINAL)
JOURNAL = f"{FILES[0]}.journal"
NAMES = (*FINAL, *DRAFTS, JOURNAL)
INPUT, PRECIOUS = "input.bin", "precious.txt"
KEPT = {INPUT: b"what the model is made of", PRECIOUS: b"nobody else's business"}
NOBODY = 65534
Rights = Mapping[str, Mapping[str, bytes]]
# The commands of the model: what they write, and with which options.
COMMANDS: dict[str, tuple[str, dict[str, bool]]] = {
    "same": ("F16", {}),
    "overwrite": ("F16", {"overwrite": True}),
    "fresh": ("F16", {"no_resume": True}),
    "other": ("BF16", {}),
    "other-overwrite": ("BF16", {"overwrite": True}),
    "other-fresh": ("BF16", {"overwrite": True, "no_resume": True}),
}


def replaces(command: str) -> bool:
    """Whether a command may replace files."""
    return "overwrite" in COMMANDS[command][1]


def _job(directory: Path, kind: str) -> Job:
    rows = np.arange(16, dtype=np.float32).reshape(2, 8)

    def plan(kind: str) -> Plan:
        tensors = tuple(TensorJob(name, (2, 8), kind, (Part(name, 0, 2),), "F32", "model") for name in "vw")
        return Plan({"kind": string(kind)}, tensors)

    one, split = (plan(kind), plan("F32")) if kind == "BF16" else (plan("F32"), plan(kind))
    parts = outputs.parts(split, directory / "b.gguf", [slice(0, 1), slice(1, 2)])
    written = [(one, outputs.single(one, directory / FILES[0])), (split, parts)]
    return Job(written, {"v": Memory(rows), "w": Memory(rows + 1)}, [directory / INPUT])


@dataclass
class Thing:
    """What the stranger has put under a name. `fd` and `content` only of regular files."""

    inode: int
    mode: int
    fd: int = -1
    content: bytes = b""


@dataclass
class World:
    """A directory with an input and a file of the stranger's, and what the stranger does to it.

    right      what the outputs hold, by type and name
    things     what the stranger has put there and not taken away again
    displaced  names from which the stranger took a complete output
    tainted    outputs in whose bytes the stranger has had a hand while they were built, or later
    """

    directory: Path
    right: Rights = field(default_factory=dict)
    things: dict[str, Thing] = field(default_factory=dict)
    displaced: set[str] = field(default_factory=set)
    tainted: set[str] = field(default_factory=set)
    serial: int = 0

    def __post_init__(self) -> None:
        self.directory.mkdir()
        for name, content in KEPT.items():
            (self.directory / name).write_bytes(content)

    def task(self, command: str) -> Callable[[], object]:
        """What a process that runs a command does."""
        kind, more = COMMANDS[command]
        options = RunOptions(quiet=True, threads=1, checksums=True, **more)
        return lambda: launch(_job(self.directory, kind), options)

    def content(self, name: str) -> bytes | None:
        """The bytes of a regular file; None where there is none."""
        path = self.directory / name
        return path.read_bytes() if is_regular(path) else None

    def status(self, name: str) -> os.stat_result | None:
        """What lies under a name itself."""
        try:
            return (self.directory / name).lstat()
        except FileNotFoundError:
            return None

    def is_strangers(self, name: str) -> bool:
        """Whether what the stranger has put under a name still lies there."""
        thing, status = self.things.get(name), self.status(name)
        return thing is not None and status is not None and (status.st_ino, status.st_mode) == (thing.inode, thing.mode)

    def act(self, action: str, name: str) -> bool:
        """Do something to a name as the stranger; False if there was nothing to do it to."""
        return ACTIONS[action](self, name)

    def vacate(self, name: str) -> bool:
        """Take away what lies under a name; False if nothing does."""
        status, path = self.status(name), self.directory / name
        if status is None:
            return False
        thing = self.things.pop(name, None)
        if thing is not None and thing.fd >= 0:
            os.close(thing.fd)
        if thing is None and self.content(name) in [files.get(name) for files in self.right.values()]:
            self.displaced.add(name)
        if stat.S_ISDIR(status.st_mode):
            path.rmdir()
        else:
            path.unlink()
        return True

    def put(self, name: str) -> Path:
        """Return a new file of the stranger's beside the name, not yet there."""
        self.serial += 1
        new = self.directory / "strangers"
        new.write_bytes(f"the stranger's {self.serial}. for {name}".encode())
        status = new.stat()
        self.things[name] = Thing(status.st_ino, status.st_mode, os.open(new, os.O_RDONLY), new.read_bytes())
        return new

    def note(self, name: str) -> bool:
        """Remember a link, directory or pipe that the stranger has put there."""
        status = (self.directory / name).lstat()
        self.things[name] = Thing(status.st_ino, status.st_mode)
        return True

    def close(self) -> None:
        """Forget what the stranger has put there."""
        for thing in self.things.values():
            if thing.fd >= 0:
                os.close(thing.fd)


def is_regular(path: Path) -> bool:
    """Whether a regular file lies under a name itself."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _create(world: World, name: str) -> bool:
    return world.status(name) is None and bool(world.put(name).rename(world.directory / name))


def _swap(world: World, name: str) -> bool:
    return world.vacate(name) and _create(world, name)


def _truncate(world: World, name: str) -> bool:
    """Cut one of our files to half its size, which also changes it where it is open."""
    path = world.directory / name
    if world.is_strangers(name) or not is_regular(path) or not path.stat().st_size:
        return False
    os.truncate(path, path.stat().st_size // 2)
    world.tainted.add(name.removesuffix(".partial"))
    return True


def _disown(world: World, name: str) -> bool:
    """Put a copy of our own file in its place that belongs to somebody else."""
    content = world.content(name)
    if os.geteuid() or not content or world.is_strangers(name):
        return False
    world.vacate(name)
    new = world.put(name)
    new.write_bytes(content)
    world.things[name].content = content
    os.chown(new, NOBODY, NOBODY)
    new.rename(world.directory / name)
    return True


def _placing(place: Callable[[Path, Path], object]) -> Callable[[World, str], bool]:
    """The action that puts something else than a new file under a name."""

    def act(world: World, name: str) -> bool:
        world.vacate(name)
        place(world.directory / name, world.directory)
        return world.note(name)

    return act


ACTIONS: dict[str, Callable[[World, str], bool]] = {
    "create": _create,
    "remove": World.vacate,
    "swap": _swap,
    "truncate": _truncate,
    "disown": _disown,
    "hardlink": _placing(lambda path, directory: os.link(directory / PRECIOUS, path)),
    "linkinput": _placing(lambda path, directory: os.link(directory / INPUT, path)),
    "symlink": _placing(lambda path, _: path.symlink_to(PRECIOUS)),
    "dangle": _placing(lambda path, _: path.symlink_to("nowhere")),
    "directory": _placing(lambda path, _: path.mkdir()),
    "pipe": _placing(lambda path, _: os.mkfifo(path)),
}
