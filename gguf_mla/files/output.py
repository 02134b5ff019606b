"""Positioned file access that never trusts a length: short reads and failed writes become sentences."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from gguf_mla.errors import InputError, MachineError
from gguf_mla.files import platform
from gguf_mla.files.clock import stage
from gguf_mla.files.input import read_into
from gguf_mla.files.platform import free_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# FAT, or `ulimit -f`.
SMALLER = "Files of that size are not allowed there: give --split-max-size 4G, or choose another place"


def partial_path(path: Path) -> Path:
    """Return the name of an output while it is unfinished."""
    return path.with_name(path.name + ".partial")


class OutputFile:
    """A file that is built as NAME.partial, written at any position by any thread, and named when it is complete.

    Used as a context. Leaving it without `commit` leaves an older file of that name alone, and keeps NAME.partial if
    `kept` is true, as it is at first for one that an earlier run has left. The file grows as it is written, because on
    a file system without holes giving it its size first would write everything twice. Raises InputError when it cannot
    be created or another process builds it, DiskFullError and MachineError when writing fails.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.final, self.path, self.size = path, partial_path(path), size
        self._fd = _create(self.path)
        self.kept = os.fstat(self._fd).st_size > 0

    @property
    def missing(self) -> int:
        """How many bytes the file still needs on the disk."""
        return max(0, self.size - platform.allocated_bytes(self._fd)) if self._fd >= 0 else 0

    def clear(self) -> None:
        """Forget what an earlier run has left."""
        self._truncate(0)

    def check_size(self) -> None:
        """Raise MachineError if the file is known to become larger than it may."""
        if not platform.may_grow_to(self._fd, self.size):
            raise unwritable(self.path, OSError(errno.EFBIG, os.strerror(errno.EFBIG)))

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """Return the `count` bytes at `offset`, fewer where the file ends; MachineError on I/O errors."""
        data = np.empty(count, np.uint8)
        return data[: read_into(self._fd, data.data, offset, self.path)]

    def write(self, data: NDArray[Any], offset: int) -> None:
        """Write a whole contiguous array at `offset`."""
        view, done = data.data.cast("B"), 0
        with stage("write"):
            while done < len(view):
                try:
                    done += platform.write_at(self._fd, view[done:], offset + done)
                except OSError as error:
                    raise unwritable(self.path, error) from None

    def sync(self) -> None:
        """Wait until everything written so far is on the disk."""
        try:
            platform.sync_data(self._fd)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def fileno(self) -> int:
        """Return the descriptor, for the OS to copy to."""
        return self._fd

    def start_sync(self) -> None:
        """Let the OS begin to write what it holds, and drop what is on the disk already; does not wait."""
        platform.start_sync(self._fd)

    def finish(self) -> None:
        """Give the file its size and wait until all of it is on the disk."""
        self._truncate(self.size)
        self.sync()

    def _truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def commit(self) -> None:
        """Give the finished file its name; after this it survives a power cut."""
        try:
            self._let_go()
            self.path.replace(self.final)
            self.kept = True
            platform.sync_directory(self.final.parent)
        except OSError as error:
            raise unwritable(self.final, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Unlinked before it is closed, where that can be: the lock holds until the name is gone.
        self._let_go()
        if not self.kept:
            self.path.unlink(missing_ok=True)
        self._close()

    def _let_go(self) -> None:
        if not platform.renames_open_files():
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _create(path: Path) -> int:
    while True:
        try:
            fd = platform.open_no_follow(str(path), os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise InputError(
                f"the output cannot be created ({error.strerror})",
                file=path,
                remedy="Choose a directory that exists and can be written",
            ) from None
        if not platform.lock(fd):
            os.close(fd)
            raise InputError("another process is writing this file", file=path, remedy="Wait for it or stop it")
        if _is_named(fd, path):
            return fd
        os.close(fd)  # another process finished between our opening and our lock: this is its file under its final name


def _is_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


class DiskFullError(MachineError):
    """A write has failed for lack of room; who knows how much is still to be written says it with `no_room`."""


def check_room(files: Sequence[OutputFile], written: int, extra: int = 0) -> None:
    """Raise MachineError unless there is room for what is missing of files with `written` bytes, and `extra` more.

    Nor may a file be larger than it can become there.

    The space that files take counts too: `written` lags behind, and where files are compressed they take less.
    """
    directory = files[0].path.parent
    free = free_bytes(directory)  # before the rest: what others write meanwhile must not count twice
    needed = extra + min(sum(file.size for file in files) - written, sum(file.missing for file in files))
    if needed > free:
        raise no_room(directory, needed)
    for file in files:
        file.check_size()


def no_room(directory: Path, needed: int) -> MachineError:
    """Return the error for a disk that lacks room for `needed` more bytes."""
    return MachineError(
        "there is not enough free disk space",
        file=directory,
        expected=f"{needed} bytes",
        found=f"{free_bytes(directory)} bytes free",
        remedy="Free some space and run the command again, or choose another place",
    )


def unwritable(path: Path, error: OSError) -> MachineError:
    """Return the error for a file that cannot be written; a DiskFullError when that is the reason."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError("the disk is full", file=path, remedy="Free some space and run the command again")
    remedy = SMALLER if error.errno == errno.EFBIG else None
    return MachineError(f"writing failed ({error.strerror or error})", file=path, remedy=remedy)
