"""OUT.gguf.sha256 beside OUT.gguf, as sha256sum writes it: `sha256sum -c` checks it, and so does `inspect --verify`."""

from __future__ import annotations

import hashlib
import re
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.files import platform
from gguf_mla.files.bounds import NOTE_BYTES
from gguf_mla.files.guard import partial_path
from gguf_mla.files.input import InputFile, read_small
from gguf_mla.files.locked import ELSEWHERE
from gguf_mla.files.output import Extra

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


def note(path: Path) -> Extra:
    """Return the note with the checksum of an output, to be written when that is complete and before it is named."""
    size = len(_line("0" * 64, path))

    def write(file: OutputFile) -> None:
        file.write(np.frombuffer(_line(sha256(partial_path(path)), path), np.uint8), 0)

    return Extra(beside(path), size, write)


def _line(digest: str, path: Path) -> bytes:
    return f"{digest}  {path.name}\n".encode()


def is_note(path: Path) -> bool:
    """Whether a note is there that is about the file beside it and nothing else: a run may remove it."""
    return _is_about(path, path.name.removesuffix(SUFFIX))


def _is_about(path: Path, name: str) -> bool:
    """Whether a file holds checksums of files of this name only."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        lines = read_small(path, NOTE_BYTES).decode().splitlines()
    except (OSError, InputError, UnicodeDecodeError):
        return False
    found = [match and match["name"] for match in map(_LINE.fullmatch, lines)]
    return set(found) == {name}


def check_note(path: Path) -> None:
    """Raise InputError if something is there that is not such a note."""
    if path.is_symlink() or (path.exists() and not is_note(path)):
        what = "would be replaced or removed, but is not a checksum of the output"
        raise InputError(what, file=path, remedy=ELSEWHERE)


def remove(path: Path) -> None:
    """Delete a note that is about an older file of the same name, and would no longer be true.

    It is looked at once more under a name that nobody else uses: what has taken its place meanwhile gets its name back.
    """
    name, aside = path.name.removesuffix(SUFFIX), path.with_name(f".{path.name}.outdated")
    if _is_about(aside, name):
        platform.remove(aside)  # of a run that was killed between the two steps
    if not is_note(path):
        return
    if aside.is_symlink() or aside.exists():
        raise InputError("a run would use this name, but something else has it", file=aside, remedy=ELSEWHERE)
    with suppress(FileNotFoundError):
        platform.replace(path, aside)
        if _is_about(aside, name):
            platform.remove(aside)
        else:
            platform.name_new(aside, path)


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
