"""Files that stay open while there are not too many: a split model may have more parts than a process may open files.

What was not used for longest is closed, and opened again when it is wanted. A file keeps its name meanwhile, and
whoever opens it again sees to it that it is the same file.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gguf_mla.files import platform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESERVE = 64  # descriptors for everything else
LEAST = 4


class Pool:
    """At most `limit` open descriptors, and as many more as are in use at the same time."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._lock = threading.RLock()  # a file that is collected may close its descriptor at any moment
        self._idle: OrderedDict[Descriptor, None] = OrderedDict()  # open and not in use, the longest first

    @property
    def limit(self) -> int:
        """How many may be open; found out when the first file is opened."""
        if self._limit is None:
            allowed = platform.open_files()
            self._limit = max(LEAST, allowed - min(RESERVE, allowed // 2))
        return self._limit

    def take(self, descriptor: Descriptor) -> int:
        """Return the descriptor's number, open and kept open until it is given back; OSError when it cannot be."""
        with self._lock:
            self._idle.pop(descriptor, None)
            descriptor.uses += 1
            try:
                if descriptor.number < 0:
                    self.make_room()
                    descriptor.number = descriptor.reopen(descriptor.seen)
            except BaseException:
                descriptor.uses -= 1
                raise
            return descriptor.number

    def give_back(self, descriptor: Descriptor) -> None:
        """Allow a descriptor to be closed for others."""
        with self._lock:
            descriptor.uses -= 1
            if descriptor.uses == 0 and descriptor.number >= 0:
                self._idle[descriptor] = None

    def make_room(self) -> None:
        """Close what was not used for longest, until one more can be opened."""
        with self._lock:
            while len(self._idle) >= self.limit:
                descriptor, _ = self._idle.popitem(last=False)
                descriptor.seen = os.fstat(descriptor.number)
                descriptor.number = _closed(descriptor.number)

    def forget(self, descriptor: Descriptor) -> None:
        """Close a descriptor for good."""
        with self._lock:
            self._idle.pop(descriptor, None)
            descriptor.reopen = _refuse
            descriptor.number = _closed(descriptor.number)


POOL = Pool()


class Descriptor:
    """An open file; `number` is -1 while it is closed for others, `uses` counts who needs it open.

    reopen  opens the same file again, which was as `seen` when it was closed
    """

    def __init__(self, number: int, reopen: Callable[[platform.Status], int], pool: Pool = POOL) -> None:
        self.number, self.reopen, self.uses = number, reopen, 0
        self.seen = os.fstat(number)
        self._pool = pool
        pool.take(self)
        pool.give_back(self)

    @contextmanager
    def open(self, failed: Callable[[OSError], Exception]) -> Iterator[int]:
        """Return the number, which stays valid inside the context; what `failed` returns when it cannot be reopened."""
        try:
            number = self._pool.take(self)
        except OSError as error:
            raise failed(error) from None
        try:
            yield number
        finally:
            self._pool.give_back(self)

    def close(self) -> None:
        """Close it for good."""
        self._pool.forget(self)


def same(status: platform.Status, seen: platform.Status) -> bool:
    """Whether a file is the one that was seen, unchanged: a number of its own may be another's once it is free."""
    return os.path.samestat(status, seen) and status.st_size == seen.st_size and status.st_mtime_ns == seen.st_mtime_ns


def _refuse(_seen: platform.Status) -> int:
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _closed(number: int) -> int:
    if number >= 0:
        os.close(number)
    return -1
