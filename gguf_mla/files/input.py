"""Positioned reads that never trust a length: a short read becomes a sentence."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Self

import numpy as np

from gguf_mla.errors import GgufMlaError, InputError, MachineError
from gguf_mla.files.clock import stage

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class InputFile:
    """A file opened for positioned reads from any number of threads.

    Reads go through `pread`, not a memory map: a file that is truncated while it is read then fails with a sentence,
    where a mapping would kill the process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Opening a pipe would wait for a writer; with O_NONBLOCK it does not, and a file takes no notice.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            status = os.fstat(self._fd)
        except OSError as error:
            raise unreadable(path, error) from None
        if not stat.S_ISREG(status.st_mode):
            raise InputError("is no regular file", file=path, remedy="Check the path")
        self.size = status.st_size
        self.identity = f"{status.st_size} bytes, changed {status.st_mtime_ns}"

    @property
    def name(self) -> str:
        """The path, as errors name the file."""
        return str(self.path)

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """Return the `count` bytes at `offset`; InputError when the file is shorter, MachineError on I/O errors."""
        data = np.empty(count, np.uint8)
        with stage("read"):
            done = read_into(self._fd, data.data, offset, self.path)
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
        """Ask the kernel to fetch a range in the background."""
        os.posix_fadvise(self._fd, offset, count, os.POSIX_FADV_WILLNEED)

    def fileno(self) -> int:
        """Return the descriptor, for the kernel to copy from."""
        return self._fd

    def was_read(self, offset: int, count: int) -> None:
        """Let the kernel forget a range that will not be wanted again."""
        os.posix_fadvise(self._fd, offset, count, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file; reading is an error afterwards."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()


def read_into(fd: int, view: memoryview, offset: int, path: Path) -> int:
    """Fill a buffer from `offset` on; return how many bytes there were."""
    done = 0
    while done < len(view):
        try:
            got = os.preadv(fd, [view[done:]], offset + done)
        except OSError as error:
            raise MachineError(f"reading failed ({error.strerror})", file=path) from None
        if got == 0:
            break
        done += got
    return done


def unreadable(path: Path, error: OSError) -> InputError:
    """Return the error for a file that cannot be opened or read."""
    remedy = "Check the path" if error.errno == errno.ENOENT else None
    return InputError(f"cannot be read ({error.strerror or error})", file=path, remedy=remedy)
