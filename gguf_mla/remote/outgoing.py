"""Files on their way to the hub, as the library reads them that sends them: counted, and stopped at any moment."""

from __future__ import annotations

import hashlib
import io
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

from gguf_mla.files.input import InputFile
from gguf_mla.remote.traffic import Traffic

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 8 << 20  # bytes that are read at a time to be hashed
SAMPLE = 512  # first bytes, by which the hub tells text from other files
SENT = Traffic()  # what this process has sent


class Content(NamedTuple):
    """What the hub is told of a file before it gets it: its bytes, their SHA-256 in hexadecimal, the first of them."""

    size: int
    sha256: str
    sample: bytes


class StoppedError(Exception):
    """The run is ending, and what is on its way with it."""


class LostError(Exception):
    """The hub asks for a file again that it had and that is not here any more."""


@dataclass
class Journey:
    """How far the file is that is on its way.

    name     in the repository, "" where none is
    at       bytes that were sent, or hashed before
    sending  whether it is being sent; before, it is hashed
    stopped  whether it is to end
    """

    name: str = ""
    size: int = 0
    at: int = 0
    sending: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)

    def begin(self, name: str, size: int, *, sending: bool) -> None:
        """Set out with a file; StoppedError where no file may."""
        self.name, self.size, self.at, self.sending = name, size, 0, sending
        self.check()

    def check(self) -> None:
        """Raise StoppedError if this is to end."""
        if self.stopped.is_set():
            raise StoppedError


def content(path: Path, journey: Journey) -> Content:
    """Read a whole file for what the hub wants to know of it; StoppedError when that is to end."""
    digest, sample = hashlib.sha256(), b""
    with InputFile(path) as file:
        for offset in range(0, file.size, BLOCK):
            journey.check()
            data = file.read(offset, min(BLOCK, file.size - offset))
            digest.update(data.data)
            sample = sample or data[:SAMPLE].tobytes()
            journey.at = offset + len(data)
        return Content(file.size, digest.hexdigest(), sample)


class Outgoing(io.BufferedIOBase):
    """A file as the library reads it that sends it; `sent` is how many bytes of it have gone, at the furthest.

    It is given as a file object and not by its name: so the library sends it by plain HTTP, where what is sent can be
    counted and ended.
    """

    def __init__(self, path: Path, journey: Journey) -> None:
        self._file, self._journey = InputFile(path), journey
        self._at = self.sent = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, later where a rate has to be held; StoppedError when the run is ending."""
        self._journey.check()
        left = self._file.size - self._at
        count = left if size is None or size < 0 else min(size, left)
        data = self._file.read(self._at, count).tobytes()
        self._at += count
        SENT.passed(count)
        self._journey.at, self.sent = self._at, max(self.sent, self._at)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go somewhere else."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._at

    def seekable(self) -> bool:
        """Whether there is `seek`."""
        return True

    def readable(self) -> bool:
        """Whether there is `read`."""
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Absent(io.BufferedIOBase):
    """In the place of a file that the hub has already: to read it is LostError."""

    def read(self, _size: int | None = -1, /) -> bytes:
        """Raise LostError."""
        raise LostError

    def seek(self, offset: int, _whence: int = io.SEEK_SET, /) -> int:
        """Go nowhere."""
        return offset

    def tell(self) -> int:
        """Return 0."""
        return 0
