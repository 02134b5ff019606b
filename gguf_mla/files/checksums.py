"""OUT.gguf.sha256 beside OUT.gguf, as sha256sum writes it: `sha256sum -c` checks it, and so does `inspect --verify`."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.files.bounds import NOTE_BYTES
from gguf_mla.files.input import InputFile, read_small
from gguf_mla.files.output import unwritable
from gguf_mla.files.platform import open_no_follow

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gguf_mla.files.output import OutputFile

SUFFIX = ".sha256"
BLOCK = 8 << 20  # bytes that are read at a time
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64}) [ *](?P<name>.+)")


def sha256(path: Path, progress: Callable[[int], object] = lambda _: None) -> str:
    """Return the SHA-256 of a file; `progress` gets the number of bytes read since its last call."""
    digest = hashlib.sha256()
    with InputFile(path) as file:
        for offset in range(0, file.size, BLOCK):
            data = file.read(offset, min(BLOCK, file.size - offset))
            digest.update(data.data)
            progress(data.nbytes)
    return digest.hexdigest()


def write(file: OutputFile) -> None:
    """Write the checksum of a complete output beside it, before the output gets its name."""
    path = beside(file.final)
    draft = path.with_name(path.name + ".partial")
    try:
        with open(draft, "w", encoding="utf-8", opener=open_no_follow) as note:
            note.write(f"{sha256(file.path)}  {file.final.name}\n")
        draft.replace(path)
    except OSError as error:
        raise unwritable(path, error) from None


def remove(file: OutputFile) -> None:
    """Delete the checksum of an older file of the same name, which would no longer be true."""
    beside(file.final).unlink(missing_ok=True)


def stated(path: Path) -> str:
    """Return the checksum noted beside `path`; InputError when there is none for this file."""
    note = beside(path)
    if not note.exists():
        raise InputError(
            "there is no checksum to compare with", file=note, remedy="Write the file with --checksums to have one"
        )
    lines = read_small(note, NOTE_BYTES).decode("utf-8", errors="replace").splitlines()
    found = [match["digest"] for line in lines if (match := _LINE.fullmatch(line)) and match["name"] == path.name]
    if not found:
        raise InputError("holds no checksum of this file", file=note, expected=f"a line with {path.name}")
    return found[-1]


def beside(path: Path) -> Path:
    """Return the path of the note that holds the checksum of a file."""
    return path.with_name(path.name + SUFFIX)
