"""Standard output and standard error, set up once for everything that prints: click, tqdm, warnings, Python itself.

- A standard stream that is closed is opened on nothing: what is printed there is dropped, and no file that is opened
  later gets its descriptor, where a library's message would end up in a model.
- A character that the encoding lacks is escaped, and so is every control character but line ends and tabs; on standard
  error also those that a progress bar needs. No terminal escape of a file reaches a terminal.
- Standard output that cannot be written (disk full) is a MachineError. A reader who has gone ends the command quietly.
- Standard error that cannot be written is a message lost: the work goes on.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import select
import sys
from typing import TYPE_CHECKING

from gguf_mla.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Callable

UP = "\x1b[A"  # how tqdm goes to the line of a bar above
_MOVE = re.compile(rf"(\n|{re.escape(UP)})+")


class ReaderGone(Exception):  # noqa: N818 - what happened is not an error
    """Nobody reads standard output any more: a pipe into `head` has seen enough."""


def set_up() -> None:
    """Put our streams in the place of Python's, for the whole process."""
    for fd in (0, 1, 2):
        _open_if_closed(fd)
    sys.stdout = Printed(1, _encoding(sys.stdout), "\n\t", _stop)
    sys.stderr = Printed(2, _encoding(sys.stderr), "\n\t\r", _go_on)


def _open_if_closed(fd: int) -> None:
    try:
        os.fstat(fd)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def _encoding(stream: io.TextIOBase | object) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def _stop(error: OSError) -> None:
    if error.errno in {errno.EPIPE, errno.ECONNRESET}:
        raise ReaderGone from None
    raise MachineError(f"standard output cannot be written ({error.strerror})") from None


def _go_on(_: OSError) -> None:
    """Nobody could be told."""


class Printed(io.TextIOBase):
    """A stream of text to a descriptor, without a buffer: what cannot be written fails where it is printed.

    It has no `buffer`, through which click would go around it where the encoding is ASCII.
    """

    def __init__(self, fd: int, encoding: str, allowed: str, failed: Callable[[OSError], None]) -> None:
        super().__init__()
        self._fd, self._name, self._allowed, self._failed = fd, encoding, allowed, failed
        self._encoder = codecs.getincrementalencoder(encoding)("backslashreplace")

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a variable of the base
        """The encoding that the environment asks for."""
        return self._name

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return os.isatty(self._fd)

    def writable(self) -> bool:
        """Tell that it can be written to."""
        return True

    def write(self, text: str) -> int:
        """Write a text, escaped where it has to be; MachineError or ReaderGone from standard output."""
        data = self._encoder.encode(text if _MOVE.fullmatch(text) and "\r" in self._allowed else self._safe(text))
        try:
            while data:
                data = data[self._some(data) :]
        except OSError as error:
            self._failed(error)
        return len(text)

    def _some(self, data: bytes) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:  # a pipe or terminal that its owner opened so that nobody waits for it
            select.select([], [self._fd], [])
            return 0

    def _safe(self, text: str) -> str:
        if text.isprintable():
            return text
        return "".join(
            c if c.isprintable() or c in self._allowed else c.encode("unicode_escape").decode() for c in text
        )
