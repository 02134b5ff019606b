"""One guard for everything that is written: which names a run touches, and what may not be there.

A run knows before it starts every name that it may create, replace or remove. None of them may lead to one of its
inputs, by whatever name, hard link or symbolic link. Only regular files are ever replaced.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from gguf_mla.files.platform import Status

Mark = list[int]  # inode, size and time of change in ns: what tells a file that we have named from any other
EXISTS = "the output exists already"
PARTIAL = ".partial"


def partial_path(path: Path) -> Path:
    """Return the name of an output while it is unfinished."""
    return path.with_name(path.name + PARTIAL)


def mark(status: Status) -> Mark:
    """Return what tells a file from another one of the same name, and from itself after a change."""
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def mark_of(path: Path) -> Mark | None:
    """Return the mark of a regular file, None where no such file is."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return mark(status) if stat.S_ISREG(status.st_mode) else None


def is_same(one: Path, other: Path) -> bool:
    """Whether two names are those of one file, links apart."""
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except OSError:
        return False


def is_known(status: Status, inode: int | None) -> bool:
    """Whether a file is the one of this inode and has no other name: then to change it costs nobody anything."""
    return stat.S_ISREG(status.st_mode) and status.st_ino == inode and status.st_nlink == 1


def obstacle(path: Path, *, overwrite: bool) -> str | None:
    """Return why a file cannot be given this name; None when it can."""
    try:
        mode = path.lstat().st_mode
    except OSError:  # creating what lies beside it will say what is wrong
        return None
    if path.is_dir():
        return "the output is a directory"
    if not stat.S_ISREG(mode):
        return "the output is not a regular file, and only those are replaced"
    return None if overwrite else EXISTS


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise InputError if a file cannot be given this name."""
    if why := obstacle(path, overwrite=overwrite):
        remedy = "Choose another name or give --overwrite" if why == EXISTS else "Choose another name"
        raise InputError(why, file=path, remedy=remedy)


def check_apart(finals: Iterable[Path], beside: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise InputError if a name that a run writes leads to one of its inputs, or two names are the same.

    finals  what the outputs will be called
    beside  all other names: what is there while the run lasts, and small files that go with the outputs
    """
    taken = {identity for path in inputs for identity in _identities(path)}
    seen: set[Path] = set()
    for path in finals:
        if not taken.isdisjoint(_identities(path)):
            raise InputError("the output is one of the inputs", file=path, remedy="Choose another name")
        _check_new(path, seen)
    for path in beside:
        if not taken.isdisjoint(_identities(path)):
            what = "is one of the inputs, and this run would write or remove it"
            raise InputError(what, file=path, remedy="Choose another name for the output")
        _check_new(path, seen)


def _check_new(path: Path, seen: set[Path]) -> None:
    place = path.absolute()
    if place in seen:
        raise InputError("two outputs have the same name", file=path, remedy="Put {type} into the name")
    seen.add(place)


def _identities(path: Path) -> Iterator[object]:
    """Yield what tells a file from all others, of a name and of what it leads to, and its place."""
    yield path.resolve()
    for look in (path.stat, path.lstat):
        with contextlib.suppress(OSError):
            status = look()
            yield status.st_dev, status.st_ino
