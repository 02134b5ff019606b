"""JSON from a stranger: bounded before it is parsed, because a few bytes of text can become a hundred in memory."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BYTES = 1 << 25
MAX_ITEMS = 1 << 20  # members and elements; a large vocabulary with its merges has 0.8 million
MAX_NESTS = 1 << 19  # objects and lists; a hundred thousand tensors in one shard have 0.3 million


def parse(text: bytes, members: Callable[[list[tuple[str, Any]]], Any] = dict) -> Any:
    """Return what a JSON text in UTF-8 says; ValueError with a reason if it is not sound or too large.

    `members` makes an object of its names and values; it may refuse them with a ValueError.
    """
    if len(text) > MAX_BYTES or text.count(b",") > MAX_ITEMS or text.count(b"{") + text.count(b"[") > MAX_NESTS:
        raise ValueError("it is larger than that of any model")
    try:
        return json.loads(text.decode(), object_pairs_hook=members)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose names are all different; ValueError if one occurs twice."""
    found = dict(members)
    if len(found) != len(members):
        counts = Counter(name for name, _ in members)
        raise ValueError(f"{counts.most_common(1)[0][0][:80]!r} occurs twice")
    return found
