"""What tells a file from another, or from itself after a change, without reading all of it."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

from gguf_mla.files.input import open_regular, unreadable

if TYPE_CHECKING:
    from pathlib import Path

HEAD_BYTES = 1 << 20  # that are compared: the header of a shard, most of that of a GGUF file


def stamp(path: Path) -> list[Any]:
    """Return name, size, time of change in ns and a digest of the first MiB; InputError for an unreadable file."""
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            head = hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None
    return [path.name, status.st_size, status.st_mtime_ns, head]
