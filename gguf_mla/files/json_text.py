"""JSON from a stranger: bounded before it is parsed, because a few bytes of text can become a hundred in memory."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from gguf_mla.files import bounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_BYTES = 1 << 25
MAX_ITEMS = 1 << 20  # members and elements; a large vocabulary with its merges has 0.8 million
MAX_NESTS = 1 << 19  # objects and lists; a hundred thousand tensors in one shard have 0.3 million
_ZEROS = bytes(ord("0") if chr(byte).isdigit() else byte for byte in range(128)) + bytes(range(128, 256))
_LONG_NUMBER = b"0" * (bounds.NUMBER_DIGITS + 1)
_CONTINUING, _ASTRAL = bytes(range(0x80, 0xC0)), bytes(range(0xF0, 0x100))  # bytes of characters in UTF-8
_PIECE = 1 << 16  # characters


def parse(text: bytes, members: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return what a JSON text in UTF-8 says; ValueError with a reason if it is not sound or too large.

    `members` makes an object of its names and values, by default a dict; it may refuse them with a ValueError.
    """
    if len(text) > MAX_BYTES or text.count(b",") > MAX_ITEMS or text.count(b"{") + text.count(b"[") > MAX_NESTS:
        raise ValueError("it is larger than that of any model")
    integer = _integer if _LONG_NUMBER in text.translate(_ZEROS) else None
    characters = _decoded(text)
    del text  # where the caller has let go of it, too, it is not there twice
    try:
        return json.loads(characters, object_pairs_hook=members, parse_int=integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _integer(digits: str) -> int:
    """Return a whole number: it takes a time that grows with the square of its digits, so they are counted first."""
    if len(digits) > bounds.NUMBER_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _decoded(text: bytes) -> str:
    """Return the characters of a text in UTF-8.

    Python gives every character of a text four bytes if one is beyond U+FFFF. Where few are, they are written as
    JSON's escapes instead, which say the same in a text of one or two bytes a character.
    """
    if text.isascii():
        return text.decode("ascii")
    astral = len(text) - len(text.translate(None, _ASTRAL))
    if not astral or 24 * astral > 2 * len(text.translate(None, _CONTINUING)):
        return text.decode()
    return "".join(_escaped(piece) for piece in _pieces(text))


def _pieces(text: bytes) -> Iterator[str]:
    """Yield a text in UTF-8 in pieces of whole characters."""
    start = 0
    while start < len(text):
        stop = start + _PIECE
        while stop < len(text) and text[stop] & 0xC0 == 0x80 and stop - start < _PIECE + 4:
            stop += 1
        yield text[start:stop].decode()
        start = stop


def _escaped(text: str) -> str:
    """Return a text with JSON's escapes for characters beyond U+FFFF."""
    if max(text) <= "\uffff":
        return text
    return "".join(c if c <= "\uffff" else json.dumps(c)[1:-1] for c in text)


def unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose names are all different; ValueError if one occurs twice."""
    found = dict(members)
    if len(found) != len(members):
        counts = Counter(name for name, _ in members)
        raise ValueError(f"{counts.most_common(1)[0][0][:80]!r} occurs twice")
    return found
