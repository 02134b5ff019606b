"""What a stranger wrote, made safe to print: escaped, cut to a length, and never more than a few of many.

Names, metadata, templates and headers come from files that nobody has looked at. A terminal obeys what is printed on
it, and a name of twenty megabytes hides the sentence that it is part of.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

NAME = 200  # characters of a name or a value
TEXT = 2000  # characters of a sentence or a path
EXAMPLES = 5
_LONG = 2 * EXAMPLES  # items of a list that is shown whole
_DIGITS = 60  # of an integer that is shown whole
_NESTED = 4  # lists in lists


def quoted(text: str, limit: int = NAME) -> str:
    """Return a text on one line of at most `limit` characters, with escapes for all that is not printable.

    That is every control character with line ends and terminal escapes, everything that changes the direction of
    writing or takes no room, and halves of surrogate pairs. A text that is cut ends with "...".
    """
    escaped = _escaped(text[: limit + 1])
    return escaped if len(escaped) <= limit else escaped[: max(0, limit - 3)] + "..."


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object, limit: int = NAME) -> str:
    """Return any value as a sentence shows it: a text as it is, a number in digits, a few of a long list's items."""
    return quoted(value if isinstance(value, str) else _plain(value, limit, _NESTED), limit)


def listed(items: Collection[object], separator: str = ", ") -> str:
    """Return all of a short list as words, of a long one a few examples and how many more there are."""
    count = EXAMPLES if len(items) > _LONG else len(items)
    words = separator.join(shown(item) for item in itertools.islice(items, count))
    return f"{words} and {len(items) - count} more" if len(items) > count else words


def _plain(value: object, limit: int, depth: int) -> str:
    """Return what `str` would, without making a text of all of it first where it may be large."""
    if isinstance(value, str):
        return repr(value[: limit + 1])
    if isinstance(value, bytes | bytearray):
        return repr(bytes(value[: limit + 1]))
    if isinstance(value, int) and not isinstance(value, bool):
        return _integer(value)
    if isinstance(value, Mapping):
        pairs = (f"{_plain(key, limit, depth - 1)}: {_plain(value[key], limit, depth - 1)}" for key in value)
        return _few("{", pairs, "}", len(value), depth)
    if isinstance(value, Sequence | AbstractSet):
        left, right = "()" if isinstance(value, tuple) else "{}" if isinstance(value, AbstractSet) else "[]"
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return _few(left, (_plain(item, limit, depth - 1) for item in value), comma + right, len(value), depth)
    return str(value)


def _few(left: str, items: Iterable[str], right: str, size: int, depth: int) -> str:
    if depth <= 0:
        return f"{left}...{right}"
    count = size if size <= _LONG else EXAMPLES
    words = ", ".join(itertools.islice(items, count))
    return f"{left}{words}{f', ... {size - count} more' if size > count else ''}{right}"


def _integer(value: int) -> str:
    """Return an integer in digits; how long it is, where that would take a line, or time that grows with its square."""
    if value.bit_length() <= 3 * _DIGITS:
        return str(value)
    return f"a {'negative ' if value < 0 else ''}whole number of {value.bit_length()} bits"
