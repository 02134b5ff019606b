"""Positioned file access that never trusts a length: short reads and failed writes become sentences."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from gguf_mla.errors import InputError, MachineError
from gguf_mla.files import platform
from gguf_mla.files.clock import stage
from gguf_mla.files.descriptors import POOL, Descriptor, same
from gguf_mla.files.guard import EXISTS, is_known, mark, mark_of, obstacle, partial_path
from gguf_mla.files.input import read_into
from gguf_mla.files.locked import ELSEWHERE, is_named, open_locked
from gguf_mla.files.platform import free_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

    from gguf_mla.files.guard import Mark

NOTHING = MappingProxyType[str, int]({})


class OutputFile:
    """A file that is built as NAME.partial, written at any position by any thread, and named when it is complete.

    Used as a context. Leaving it without `commit` leaves an older file of that name alone, and keeps NAME.partial if
    `kept` is true, as it is at first for one that an earlier run has left. The file grows as it is written, because on
    a file system without holes giving it its size first would write everything twice.

    known      the inodes of unfinished files that are known to be ours, by output; no other may hold anything
    overwrite  whether the name may be taken from another regular file

    Raises InputError when it cannot be created, another process builds it or what is there is not ours, DiskFullError
    and MachineError when writing fails.
    """

    def __init__(self, path: Path, size: int, *, known: Mapping[str, int] = NOTHING, overwrite: bool = False) -> None:
        self.final, self.path, self.size, self.overwrite = path, partial_path(path), size, overwrite
        self._closed: Mark = []  # what the file was like when it was closed to be named
        POOL.make_room()
        number = open_locked(self.path, self.lock)
        status = os.fstat(number)
        self._inode, self._gone, self._named = status.st_ino, False, False
        self._descriptor = Descriptor(number, self._reopened)
        self.kept = status.st_size > 0
        try:
            check_known(self.path, status, known.get(path.name))
        except InputError:
            self._close()
            raise

    @staticmethod
    def lock(fd: int) -> bool:
        """Lock the open file; False if it cannot be had."""
        return platform.lock(fd)

    @property
    def missing(self) -> int:
        """How many bytes the file still needs on the disk."""
        if self._gone:
            return 0
        with self.opened() as fd:
            return max(0, self.size - platform.allocated_bytes(fd))

    def clear(self) -> None:
        """Forget what an earlier run has left."""
        self._truncate(0)

    def check_size(self) -> None:
        """Raise MachineError if the file is known to become larger than it may."""
        with self.opened() as fd:
            if not platform.may_grow_to(fd, self.size):
                raise unwritable(self.path, OSError(errno.EFBIG, os.strerror(errno.EFBIG)))

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """Return the `count` bytes at `offset`, fewer where the file ends; MachineError on I/O errors."""
        data = np.empty(count, np.uint8)
        return data[: self.read_into(data, offset)]

    def read_into(self, out: NDArray[Any], offset: int) -> int:
        """Fill a contiguous array with the bytes at `offset`, as far as there are any; return how many there are."""
        with self.opened() as fd:
            return read_into(fd, out.data.cast("B"), offset, self.path)

    def write(self, data: NDArray[Any], offset: int) -> None:
        """Write a whole contiguous array at `offset`."""
        view, done = data.data.cast("B"), 0
        with stage("write"), self.opened() as fd:
            while done < len(view):
                try:
                    done += platform.write_at(fd, view[done:], offset + done)
                except OSError as error:
                    raise unwritable(self.path, error) from None

    def sync(self) -> None:
        """Wait until everything written so far is on the disk."""
        try:
            with self.opened() as fd:
                platform.sync_data(fd)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def opened(self) -> AbstractContextManager[int]:
        """Return the descriptor, which stays open inside the context; MachineError when it cannot be opened again."""
        return self._descriptor.open(lambda error: unwritable(self.path, error))

    def fileno(self) -> int:
        """Return the descriptor, which stays open until other files need it."""
        with self.opened() as fd:
            return fd

    def start_sync(self) -> None:
        """Let the OS begin to write what it holds, and drop what is on the disk already; does not wait."""
        with self.opened() as fd:
            platform.start_sync(fd)

    def finish(self) -> None:
        """Give the file its size and wait until all of it is on the disk."""
        self._truncate(self.size)
        self.sync()

    def _truncate(self, size: int) -> None:
        try:
            with self.opened() as fd:
                platform.truncate(fd, size)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def inode(self) -> int:
        """Return the number by which the file system knows the file."""
        return self._inode

    def mark(self) -> Mark:
        """Return what will tell the file from any other once it has its name."""
        with self.opened() as fd:
            return mark(os.fstat(fd))

    def check(self) -> None:
        """Raise MachineError if the file cannot be named: it was taken away, or something else has its name."""
        with self.opened() as fd:
            if not is_named(fd, self.path):
                raise self._taken_away()
        if why := obstacle(self.final, overwrite=self.overwrite):
            raise _taken(self.final, why)

    def commit(self) -> None:
        """Give the finished file its name; after this it survives a power cut."""
        self.check()
        try:
            self._let_go()
            (platform.replace if self.overwrite else platform.name_new)(self.path, self.final)
            self._named = True
            self.kept = True
            platform.sync_directory(self.final.parent)
        except FileExistsError:
            raise _taken(self.final, EXISTS) from None
        except OSError as error:
            raise unwritable(self.final, error) from None

    def put(self, data: bytes) -> None:
        """Make this the whole file, and give it its name."""
        self.clear()
        self.size = len(data)
        self.write(np.frombuffer(data, np.uint8), 0)
        self.finish()
        self.commit()

    def drop(self) -> None:
        """Take the unfinished name away, unless another file has it by now."""
        if self._is_named():
            # Before it is closed, where that can be: the lock holds until the name is gone.
            self._let_go()
            platform.remove(self.path)

    def discard(self) -> None:
        """Take the unfinished name and the room on the disk away: the content is elsewhere."""
        self.drop()
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.kept:
            self.drop()
        self._close()

    def _is_named(self) -> bool:
        if self._gone:
            return mark_of(self.path) == self._closed
        try:
            with self.opened() as fd:
                return is_named(fd, self.path)
        except TakenAwayError:
            return False

    def _let_go(self) -> None:
        if not platform.renames_open_files() and not self._gone:
            self._closed = self.mark()
            self._close()

    def _close(self) -> None:
        self._gone = True
        self._descriptor.close()

    def _reopened(self, seen: platform.Status) -> int:
        """Open the file again that was closed for others, and lock it; TakenAwayError for another one."""
        path = self.final if self._named else self.path
        try:
            number = platform.reopen(path)
        except FileNotFoundError:
            raise self._taken_away() from None
        if not same(os.fstat(number), seen) or not self.lock(number):
            os.close(number)
            raise self._taken_away()
        return number

    def _taken_away(self) -> TakenAwayError:
        remedy = "Run the command again, and leave the files alone that it writes"
        return TakenAwayError("the file that was written was taken away", file=self.path, remedy=remedy)


class SharedFile(OutputFile):
    """A file that several processes build together, each writing what no other does; whoever is last names it.

    None of them removes it. While one has it open, nobody can open it as an OutputFile.
    """

    @staticmethod
    def lock(fd: int) -> bool:
        """Lock the open file against whoever wants it alone; False if somebody has it alone."""
        return platform.lock_shared(fd)

    def __exit__(self, *_: object) -> None:
        self._close()


def check_known(path: Path, status: platform.Status, inode: int | None) -> None:
    """Raise InputError if an unfinished file holds anything and is not the one that a run has noted, by its inode."""
    if status.st_size > 0 and not is_known(status, inode):
        raise InputError("is there already, and no run of ours has noted it", file=path, remedy=ELSEWHERE)


@dataclass(frozen=True)
class Extra:
    """A file that is written when the outputs of a run are complete, and named together with them.

    path   its name
    size   in bytes
    write  gives the file its content
    """

    path: Path
    size: int
    write: Callable[[OutputFile], object]


def _taken(path: Path, why: str) -> MachineError:
    return MachineError(
        f"{why}, since the run began",
        file=path,
        remedy="Move it away and run the same command again to name what is finished",
    )


class TakenAwayError(MachineError):
    """An unfinished file was removed or replaced: there is nothing to go on with."""


class DiskFullError(MachineError):
    """A write has failed for lack of room; who knows how much is still to be written says it with `no_room`."""


def check_room(files: Sequence[OutputFile], written: int, extra: int = 0, *, at_once: int | None = None) -> None:
    """Raise MachineError unless there is room for what is missing of files with `written` bytes, and `extra` more.

    Nor may a file be larger than it can become there.

    The space that files take counts too: `written` lags behind, and where files are compressed they take less. Where
    files go when they are complete, `at_once` is how many bytes there are of them at the same time.
    """
    directory = files[0].path.parent
    free = free_bytes(directory)  # before the rest: what others write meanwhile must not count twice
    size, missing = sum(file.size for file in files), sum(file.missing for file in files)
    needed = extra + min(missing, size - written if at_once is None else max(0, at_once - (size - missing)))
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


def _smaller(path: Path) -> str:
    """Say what to do where files of that size are not allowed: on FAT, or by `ulimit -f`."""
    if not path.name.removesuffix(".partial").endswith(".gguf"):  # what lies beside an output is not split
        return "Files of that size are not allowed there: choose another place"
    limit = platform.file_limit()
    less = "" if limit is None or limit > 1 << 32 else f", or less where `ulimit -f` allows only {limit} bytes,"
    return f"Files of that size are not allowed there: give --split-max-size 4G{less} or choose another place"


def unwritable(path: Path, error: OSError) -> MachineError:
    """Return the error for a file that cannot be written; a DiskFullError when that is the reason."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError("the disk is full", file=path, remedy="Free some space and run the command again")
    remedy = _smaller(path) if error.errno == errno.EFBIG else None
    return MachineError(f"writing failed ({error.strerror or error})", file=path, remedy=remedy)
