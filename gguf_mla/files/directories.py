"""Directories that outputs lie in, and those that are outputs themselves."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.files.locked import impossible
from gguf_mla.files.output import unwritable

if TYPE_CHECKING:
    from collections.abc import Iterator


def make_directory(path: Path) -> None:
    """Create a directory and those above it, where they are missing; InputError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise impossible(path, error.strerror or str(error)) from None


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield where to create a directory, which gets its name when it is complete; nothing is left of another.

    Raises InputError where something has the name or it cannot be created, MachineError where writing fails.
    """
    if path.exists():
        raise InputError("exists already", file=path, remedy="Choose another directory")
    make_directory(path.parent)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.") as unfinished:
            place = Path(unfinished) / path.name
            yield place
            place.rename(path)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise impossible(path, os.strerror(error.errno)) from None
        raise unwritable(path, error) from None
