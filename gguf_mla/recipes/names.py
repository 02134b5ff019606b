"""Names that users type, and the suggestion for one that does not exist."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from gguf_mla import ggtypes
from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return a remedy with the known names that look like `name`, None if none does."""
    near = difflib.get_close_matches(name.upper(), list(known), n=3)
    return f"Perhaps you mean {', '.join(near)}" if near else None


def encodable(name: str) -> str:
    """Return the ggml type's proper name; InputError, with suggestions, if nothing can be encoded to it."""
    known = ggtypes.types()
    if name.upper() not in known:
        remedy = closest(name, known) or f"Known types: {', '.join(known)}"
        raise InputError(f"there is no tensor type {name!r} to quantize to", remedy=remedy)
    return name.upper()
