"""Tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unicodedata import category, east_asian_width

from gguf_mla.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WIDEST = 160


def table(header: Sequence[str], rows: Iterable[Sequence[object]], right: str = "") -> str:
    """Return an aligned table; `right` names the columns that are aligned to the right.

    A cell is one line of at most WIDEST characters, since every row is as wide as the widest.
    """
    cells = [list(header), *([quoted(str(cell), WIDEST) for cell in row] for row in rows)]
    widths = [max(width(row[column]) for row in cells) for column in range(len(header))]
    numeric = [name in right.split(",") for name in header]
    lines = [
        "  ".join(_padded(cell, wide, flush) for cell, wide, flush in zip(row, widths, numeric, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * wide for wide in widths), *lines[1:]])


def _padded(cell: str, wide: int, flush: bool) -> str:
    space = " " * (wide - width(cell))
    return space + cell if flush else cell + space


def width(text: str) -> int:
    """Return how many columns a terminal needs: two for full-width characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(2 if east_asian_width(c) in "FW" else category(c) not in {"Mn", "Me", "Cf"} for c in text)
