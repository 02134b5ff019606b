"""The names of a GGUF file's tensors: `blk.N.REST` in layer N, anything else in the model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# More digits than any model has layers; a name is a stranger's, and Python refuses to read thousands of digits.
_IN_LAYER = re.compile(r"blk\.(?P<layer>[0-9]{1,9})(?:\.(?P<rest>.*))?", re.DOTALL)


def split_name(name: str) -> tuple[int | None, str]:
    """Return the layer and the name without it; None and the whole name for a tensor that names no layer."""
    found = _IN_LAYER.fullmatch(name)
    return (int(found["layer"]), found["rest"] or "") if found else (None, name)


def lacks_first_layer(names: Iterable[str]) -> bool:
    """Tell whether no tensor is of the first layer, as in a file of multi-token prediction alone."""
    return not any(name.startswith("blk.0.") for name in names)
