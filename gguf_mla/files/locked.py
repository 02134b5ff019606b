"""A file that a run writes beside an output, opened by this process alone: never a stranger's, never through a link."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError, MachineError
from gguf_mla.files import platform

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


WRITING = "another process is writing this file"


class BusyError(InputError):
    """Another process has the file locked."""


def open_locked(path: Path, lock: Callable[[int], bool] | None = None, taken: str = WRITING) -> int:
    """Create a file, or open the one that is there with what it holds, and lock it until it is closed.

    `lock` is `platform.lock`, or `platform.lock_shared` for a file that several processes write. InputError, with
    nothing changed, when it cannot be created, is not a regular file, belongs to another user, or another process has
    locked it.
    """
    while True:
        try:
            fd = _created_or_opened(path)
        except FileNotFoundError:
            if path.parent.is_dir():
                continue  # it was there, and is not any more: another process has finished
            raise impossible(path, os.strerror(errno.ENOENT)) from None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                remedy = "Allow more open files (ulimit -n), and run again"
                raise MachineError(f"cannot be opened ({error.strerror})", file=path, remedy=remedy) from None
            raise impossible(path, str(error.strerror)) from None
        if not (lock or platform.lock)(fd):
            os.close(fd)
            raise BusyError(taken, file=path, remedy="Wait for it or stop it")
        if is_named(fd, path):
            return fd
        os.close(fd)  # another process finished between our opening and our lock: this is its file under its final name


def _created_or_opened(path: Path) -> int:
    try:
        return platform.create(path)
    except FileExistsError:
        check_ours(path, path.lstat())  # before it is opened: opening a device may do something
    fd = platform.reopen(path)
    try:
        check_ours(path, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_ours(path: Path, status: platform.Status) -> None:
    """Raise InputError unless a run may write a file of this status beside an output; links are left to the opening."""
    if stat.S_ISLNK(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):
        raise InputError("a run would write here, but it is not a regular file", file=path, remedy=ELSEWHERE)
    if not platform.is_own(status):
        raise InputError("a run would write here, but the file belongs to another user", file=path, remedy=ELSEWHERE)


ELSEWHERE = "Move it away or choose another name for the output"


def is_named(fd: int, path: Path) -> bool:
    """Whether a name still leads to the file that is open, and not through a link."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def impossible(path: Path, why: str) -> InputError:
    """Return the error for an output that the system does not let anybody create."""
    return InputError(
        f"the output cannot be created ({why})", file=path, remedy="Choose a directory that exists and can be written"
    )
