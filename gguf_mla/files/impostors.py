"""Files that are not what their names say, told by their first bytes: what came in their place, and the way on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from pathlib import PurePath

    from gguf_mla.files.readable import Readable

LOOKED_AT = 64  # bytes
AGAIN = "Download the file again, and look at what the server answers: it may ask for a token, or the address is wrong"
# How the bytes begin, what such a file is, and what to do.
IMPOSTORS = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, a text in the place of the file",
        "Run git lfs pull where it was cloned, or download the file itself",
    ),
    (b"<!DOCTYPE", "is a web page in the place of the file", AGAIN),
    (b"<!doctype", "is a web page in the place of the file", AGAIN),
    (b"<html", "is a web page in the place of the file", AGAIN),
    (b"<?xml", "is an XML answer in the place of the file", AGAIN),
    (b"Entry not found", "is a server's answer in the place of the file", AGAIN),
    (b"Invalid username or password", "is a server's answer in the place of the file", AGAIN),
    (
        b"PK\x03\x04",
        "is a zip archive: a pickle of PyTorch, which can run code and is never loaded, or a packed download",
        "Unpack it, or download the safetensors version",
    ),
    (b"\x1f\x8b", "is compressed with gzip", "Unpack it"),
)


def check(file: Readable) -> None:
    """Raise InputError for a file that something else came in the place of."""
    refuse(file.read(0, min(file.size, LOOKED_AT)).tobytes(), file.name)


def refuse(beginning: bytes, name: PurePath | str) -> None:
    """Raise InputError where the beginning of a file is that of something else."""
    for start, what, remedy in IMPOSTORS:
        if beginning.startswith(start):
            raise InputError(what, file=name, remedy=remedy)
