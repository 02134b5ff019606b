"""What tells a file from another, or from itself after a change, without reading all of it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import MachineError
from gguf_mla.files.guard import mark
from gguf_mla.files.input import open_regular, unreadable
from gguf_mla.files.readable import Elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gguf_mla.files.guard import Mark
    from gguf_mla.files.readable import AnyPath

HEAD_BYTES = 1 << 20  # that are compared: the header of a shard, most of that of a GGUF file


def stamp(path: AnyPath) -> list[Any]:
    """Return name, size, time of change in ns and a digest of the first MiB; InputError for an unreadable file.

    Of a file elsewhere, name, size and the identity that it has there.
    """
    if isinstance(path, Elsewhere):
        far = path.opened()
        return [path.name, far.size, far.identity]
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            head = hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None
    return [path.name, status.st_size, status.st_mtime_ns, head]


class ChangedError(MachineError):
    """An input has changed while it was read: what was made of it is a mixture, and of no use."""


class Watch:
    """Files that must not change from now on; InputError for one that cannot be looked at."""

    def __init__(self, paths: Iterable[AnyPath]) -> None:
        paths = [*paths]
        self._marks = {path: _mark(path) for path in paths if isinstance(path, Path)}
        self._elsewhere = [path for path in paths if isinstance(path, Elsewhere)]

    def check(self) -> None:
        """Raise ChangedError, naming the file, if one is another file by now, or has another size or time of change.

        For a file elsewhere InputError, if what was read of it is not what it should be.
        """
        for far in self._elsewhere:
            far.check()
        for path, before in self._marks.items():
            try:
                same = _mark(path) == before
            except OSError:
                same = False
            if not same:
                what = "the file was changed or replaced while it was read"
                raise ChangedError(what, file=path, remedy="Run the command again once it stays as it is")


def _mark(path: Path) -> Mark:
    return mark(path.stat())
