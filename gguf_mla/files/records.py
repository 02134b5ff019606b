"""An append-only log of lines that survives a power cut: a head, then records, each on the disk before it counts.

The head is a JSON object that says what the log is about. A torn line, or anything after it, counts as not written:
it is cut off when the log is opened again.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Self

from gguf_mla.errors import MachineError
from gguf_mla.files import json_text, platform
from gguf_mla.files.input import open_regular, unreadable
from gguf_mla.files.output import unwritable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

MAX_LINE = json_text.MAX_BYTES  # a head may name every input of a run


class Reading:
    """The records of a log as an iterator of lines, up to one that is torn or that `is_record` does not accept.

    head  what the first line says, None where there is no log or no sound head
    end   bytes up to the end of the last line that was given

    InputError for a file that is there and cannot be read.
    """

    def __init__(self, path: Path, is_record: Callable[[str], bool]) -> None:
        self.end, self._is_record = 0, is_record
        self._lines = self._complete(path)
        self.head = self._read_head()

    def __iter__(self) -> Iterator[str]:
        if self.head is None:
            return
        for line, nbytes in self._lines:
            if not self._is_record(line):
                return
            self.end += nbytes
            yield line

    def _read_head(self) -> dict[str, Any] | None:
        line, nbytes = next(self._lines, ("", 0))
        try:
            head = json_text.parse(line.encode())
        except ValueError:
            return None
        if not isinstance(head, dict):
            return None
        self.end = nbytes
        return head

    @staticmethod
    def _complete(path: Path) -> Iterator[tuple[str, int]]:
        """Yield every line that has its end, and its bytes."""
        try:
            with open_regular(path) as file:
                while (raw := file.readline(MAX_LINE)).endswith(b"\n"):
                    yield raw[:-1].decode(errors="replace"), len(raw)
        except FileNotFoundError:
            return
        except OSError as error:
            raise unreadable(path, error) from None


class Records:
    """A log that is open for appending, after the `end` bytes of it that are sound; MachineError when writing fails."""

    def __init__(self, path: Path, end: int = 0) -> None:
        self.path = path
        try:
            self._file = open(path, "ab", opener=platform.open_no_follow)  # noqa: SIM115 - takes an opener, and is kept
            self._file.truncate(end)
        except OSError as error:
            raise unwritable(path, error) from None

    def begin(self, head: Mapping[str, Any]) -> None:
        """Write the first line of an empty log; a log that cannot have one is deleted."""
        try:
            self.append([json.dumps(head)])
        except MachineError:
            self.__exit__()
            self.remove()
            raise

    def append(self, lines: Iterable[str]) -> None:
        """Add lines; they are on the disk when this returns."""
        try:
            self._file.write("".join(f"{line}\n" for line in lines).encode())
            self._file.flush()
            platform.sync_data(self._file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from None

    def remove(self) -> None:
        """Close and delete the log, in this order, because not every system deletes an open file."""
        self.__exit__()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # What a full disk has kept in the buffer was reported, and would be refused again here.
        with contextlib.suppress(OSError):
            self._file.close()
