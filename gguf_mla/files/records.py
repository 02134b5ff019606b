"""An append-only log of lines that survives a power cut: a head, then records, each on the disk before it counts.

The head is a JSON object that says what the log is about. A torn line, or anything after it, counts as not written:
it is cut off when the log is opened again.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Self

from gguf_mla.files import json_text, platform
from gguf_mla.files.input import open_regular, unreadable
from gguf_mla.files.locked import is_named, open_locked
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
    """A log that this process alone appends to, after `cut` to what is sound of it.

    Used as a context; left without anything in it, it is deleted. InputError when it cannot be created, another process
    has it or it is not ours; MachineError when writing fails.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._fd = path, open_locked(path)

    def cut(self, end: int) -> None:
        """Forget what stands after so many bytes."""
        try:
            platform.truncate(self._fd, end)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def begin(self, head: Mapping[str, Any]) -> None:
        """Make this the first line of a new log, whose name is on the disk when this returns."""
        self.cut(0)
        self.append([json.dumps(head)])
        try:
            platform.sync_directory(self.path.parent)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def append(self, lines: Iterable[str]) -> None:
        """Add lines; they are on the disk when this returns."""
        try:
            platform.append(self._fd, "".join(f"{line}\n" for line in lines).encode())
            platform.sync_data(self._fd)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def remove(self) -> None:
        """Delete the log, unless another has its name by now, and close it; where it must be, it is closed first."""
        if self._fd < 0:
            return
        named = is_named(self._fd, self.path)
        if not platform.renames_open_files():
            self._close()
        if named:
            platform.remove(self.path)
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0 and os.fstat(self._fd).st_size == 0:
            self.remove()
        self._close()
