"""Files that are not whole: raw pieces of one, parts that were joined end to end, a pointer in place of the file.

Repositories cut large files at any byte, because a server takes only so much, and the pieces are joined with cat. Parts
that gguf-split has made are GGUF files of their own, and are not.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import PurePath

LFS = b"version https://git-lfs"
# What tools call the pieces of NAME: .part1of2, -split-a, .00, .part-aa, .gguf.001
_NUMBERED = re.compile(r"(?P<name>.+)\.part(?P<number>\d+)of(?P<count>\d+)", re.DOTALL | re.IGNORECASE)
_SERIES = re.compile(
    r"(?P<name>.+\.gguf)(?P<mark>[.-]split-|\.part[-_.]?|\.|-part-?)(?P<at>[a-z]{1,2}|\d{1,5})", re.DOTALL
)


def not_whole(path: PurePath, start: bytes) -> InputError | None:
    """Return the error for a file that cannot be read and is a raw piece or a pointer; None for any other."""
    if start.startswith(LFS):
        remedy = "Fetch the file itself with: git lfs pull"
        return InputError("is a Git LFS pointer, a few lines of text in place of the file", file=path, remedy=remedy)
    numbered = _NUMBERED.fullmatch(path.name)
    if numbered is not None:
        whole, number, count = numbered["name"], numbered["number"][:9], numbered["count"][:9]
        return _piece(path, whole, f"piece {number} of {count}", lambda n: f"{whole}.part{n}of{count}")
    series = _SERIES.fullmatch(path.name)
    if series is None:
        return None
    whole = series["name"]
    return _piece(path, whole, "a piece", lambda _: f"{whole}{series['mark']}*")


def _piece(path: PurePath, whole: str, which: str, called: Callable[[int], str]) -> InputError:
    pieces = list(dict.fromkeys((called(1), called(2))))
    more = " ..." if len(pieces) > 1 else ""
    return InputError(
        f"is {which} of a file that was cut at any byte, not a GGUF file of its own",
        file=path,
        expected=f"all pieces joined to {quoted(whole)}",
        remedy=f"Join them in order: cat {' '.join(map(quoted, pieces))}{more} > {quoted(whole)}",
    )


def joined(path: PurePath) -> InputError:
    """Return the error for parts of a split model that were joined end to end."""
    return InputError(
        "is several GGUF files joined end to end, of which only the first would be read",
        file=path,
        remedy="Parts that gguf-split made are joined by gguf-mla merge; copy them anew and name the first",
    )
