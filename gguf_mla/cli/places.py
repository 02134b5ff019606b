"""Where outputs go: what a user writes as OUT, which may be a directory and hold the type."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# What stands for the type in OUT: ours, and those of llama.cpp's converter.
TYPES: dict[str, Callable[[str], str]] = {
    "{type}": str,
    "{ftype}": str.lower,
    "{outtype}": str.lower,
    "{FTYPE}": str.upper,
    "{OUTTYPE}": str.upper,
}


def place(out: str | None, name: str, file_type: str | None = None) -> Path:
    """Return where an output goes: OUT with {type} filled in, NAME-TYPE.gguf in the directory OUT, or in this one.

    OUT is a directory if it ends in a slash or is one already. Without a type the name is NAME.gguf, and nothing is
    filled in. InputError for "-", which programs take for standard output.
    """
    if out == "-":
        raise InputError(
            "a GGUF file cannot go to standard output: it is written in many places at the same time",
            remedy="Name a file; ./- is one of that name",
        )
    own = f"{name}.gguf" if file_type is None else f"{name}-{file_type}.gguf"
    if out is None:
        return Path(own)
    filled = _filled(out, file_type) if file_type else out
    return Path(filled) / own if _is_directory(filled) else Path(filled)


def new_directories(out: str | None, paths: Iterable[Path]) -> list[Path]:
    """Return the directories of outputs that a user wants to be created where they are missing.

    They are those that OUT calls directories, by a slash at its end, or that have the type in their names. Any other
    that is missing is more likely a slip of the pen.
    """
    wanted = out is not None and (_ends_as_directory(out) or _has_type(os.path.dirname(out)))  # noqa: PTH120 - a text
    return list(dict.fromkeys(path.parent for path in paths)) if wanted else []


def _filled(out: str, file_type: str) -> str:
    for mark, spelled in TYPES.items():
        out = out.replace(mark, spelled(file_type))
    return out


def _has_type(text: str) -> bool:
    return any(mark in text for mark in TYPES)


def _is_directory(out: str) -> bool:
    return _ends_as_directory(out) or Path(out).is_dir()


def _ends_as_directory(out: str) -> bool:
    return out.endswith(("/", os.sep))
