"""Positioned reads that never trust a length: a short read becomes a sentence."""

from __future__ import annotations

import errno
import functools
import os
import stat
import weakref
from typing import TYPE_CHECKING, BinaryIO, Self

import numpy as np

from gguf_mla.errors import GgufMlaError, InputError, MachineError
from gguf_mla.files import platform
from gguf_mla.files.clock import stage
from gguf_mla.files.descriptors import POOL, Descriptor, same
from gguf_mla.files.readable import Elsewhere

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

    from gguf_mla.files.readable import AnyPath, Readable


class InputFile:
    """A file opened for positioned reads from any number of threads.

    Reads are positioned, not through a memory map: a file that is truncated while it is read then fails with a
    sentence, where a mapping would kill the process.

    Tensors share the file that they lie in, and plans, threads and reports share tensors: nobody knows to be the last.
    So a file that nobody has closed is closed when the last of them is gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            check_regular(path)
            POOL.make_room()
            number = platform.open_input(path)
        except OSError as error:
            raise unreadable(path, error) from None
        status = os.fstat(number)
        self._descriptor = Descriptor(number, functools.partial(_reopened, path))
        self._close = weakref.finalize(self, self._descriptor.close)
        self._close.atexit = False  # then the OS closes it, and a thread may still be reading
        _refuse_irregular(status.st_mode, path)  # it may have become another file since it was looked at
        self.size = status.st_size
        self.identity = f"{status.st_size} bytes, changed {status.st_mtime_ns}"

    @property
    def name(self) -> str:
        """The path, as errors name the file."""
        return str(self.path)

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """Return the `count` bytes at `offset`; InputError when the file is shorter, MachineError on I/O errors."""
        data = np.empty(count, np.uint8)
        with stage("read"), self.opened() as fd:
            done = read_into(fd, data.data, offset, self.path)
        if done < count:
            raise self._short(offset + count, offset + done)
        return data

    def _short(self, expected: int, found: int) -> GgufMlaError:
        if expected <= self.size:
            return MachineError(
                "the file has become shorter while it was read",
                file=self.path,
                expected=f"{self.size} bytes",
                found=f"{found} bytes",
                remedy="Put the whole file back and run the command again",
            )
        return InputError(
            "the file ends too early, it was cut off or is still being written",
            file=self.path,
            expected=f"at least {expected} bytes",
            found=f"{found} bytes",
            remedy="Download or copy it again",
        )

    def will_read(self, offset: int, count: int) -> None:
        """Ask the OS to fetch a range in the background."""
        with self.opened() as fd:
            platform.will_read(fd, offset, count)

    def opened(self) -> AbstractContextManager[int]:
        """Return the descriptor, which stays open inside the context; MachineError when it cannot be opened again."""
        return self._descriptor.open(lambda error: MachineError(f"reading failed ({error.strerror})", file=self.path))

    def fileno(self) -> int:
        """Return the descriptor, which stays open until other files need it."""
        with self.opened() as fd:
            return fd

    def was_read(self, offset: int, count: int) -> None:
        """Let the OS forget a range that will not be wanted again."""
        with self.opened() as fd:
            platform.was_read(fd, offset, count)

    def close(self) -> None:
        """Close the file; reading is an error afterwards."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_input(path: AnyPath) -> InputFile | Readable:
    """Return a file to read, wherever it lies; InputError when it is missing or cannot be read."""
    return path.opened() if isinstance(path, Elsewhere) else InputFile(path)


def _reopened(path: Path, seen: platform.Status) -> int:
    """Open a file again that was closed for others; MachineError for another file of that name."""
    number = platform.open_input(path)
    if not same(os.fstat(number), seen):
        os.close(number)
        what = "the file was changed or replaced while it was read"
        raise MachineError(what, file=path, remedy="Run the command again once it stays as it is")
    return number


def check_regular(path: Path) -> None:
    """Look before opening: opening a pipe may wait for a writer, and opening a device may do something."""
    _refuse_irregular(path.stat().st_mode, path)


def _refuse_irregular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        raise InputError("is not a regular file", file=path, remedy="Check the path")


def read_small(path: Path, at_most: int) -> bytes:
    """Return what a small file holds; InputError when it is larger than `at_most` bytes, or not a regular file."""
    with InputFile(path) as file:
        if file.size > at_most:
            expected, found = f"at most {at_most} bytes", f"{file.size} bytes"
            raise InputError("is larger than any file of its kind", file=path, expected=expected, found=found)
        return file.read(0, file.size).tobytes()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to be read from its beginning; InputError, and no waiting, for a pipe or a device.

    OSError when it cannot be opened.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    check_regular(path)
    return open(path, "rb", opener=lambda name, _flags: platform.open_input(name))


def read_into(fd: int, view: memoryview, offset: int, path: Path) -> int:
    """Fill a buffer from `offset` on; return how many bytes there were."""
    done = 0
    while done < len(view):
        try:
            got = platform.read_at(fd, view[done:], offset + done)
        except OSError as error:
            raise MachineError(f"reading failed ({error.strerror})", file=path) from None
        if got == 0:
            break
        done += got
    return done


# Why a file cannot be read that may be fine.
_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}


def unreadable(path: Path, error: OSError) -> GgufMlaError:
    """Return the error for a file that cannot be opened or read: MachineError where that says nothing of the file."""
    if error.errno in _MACHINE:
        return MachineError(f"cannot be read ({error.strerror})", file=path)
    remedy = "Check the path" if error.errno == errno.ENOENT else None
    return InputError(f"cannot be read ({error.strerror or error})", file=path, remedy=remedy)
