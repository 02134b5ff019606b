"""What reading has shown, as data that leave the process: the kinds of remarks by name, and their fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla.sources.formats.shared.int4 import Rounding

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS = {kind.__name__: kind for kind in (Rounding,)}


def to_data(remark: Any) -> list[Any]:
    """Return a remark as JSON-ready data."""
    return [type(remark).__name__, *remark]


def from_data(data: Sequence[Any]) -> Any:
    """Return the remark again; KeyError, TypeError or ValueError for other data."""
    name, *fields = data
    return KINDS[name](*fields)
