"""How rows become a type's bytes: which formula of the type's file runs. Decided once, carried to the device.

A type's file says by the names of its functions what it can do: `encode` is ggml's own search, `encode_weighted` that
with importance; `encode_NAME` and `encode_weighted_NAME` are those of another search. Nothing else lists them.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from gguf_mla.ggtypes import TensorType

GGML = "ggml"  # the search that gives the bytes of ggml's own quantizer
_FORMULA = re.compile(r"encode(?P<weighted>_weighted)?(_(?P<search>\w+))?")


@dataclass(frozen=True)
class Encoding:
    """One way to encode a type.

    type      the type
    weighted  errors are weighed by each column's importance
    search    whose search for scales and levels: "ggml", or another that the type's file has
    """

    type: TensorType
    weighted: bool = False
    search: str = GGML

    @property
    def formula(self) -> str:
        """The name of the function, in the type's file, that encodes so."""
        if self.type.block == 1:
            return "encode_value"
        weighted = "_weighted" if self.weighted else ""
        return f"encode{weighted}" if self.search == GGML else f"encode{weighted}_{self.search}"


@functools.cache
def encodings(tensor_type: TensorType) -> tuple[Encoding, ...]:
    """Return every way a type can be encoded, ggml's first, without importance first; none for plain numbers."""
    if not tensor_type.module_name:
        return ()
    if tensor_type.block == 1:
        return (Encoding(tensor_type),)
    names = (match for name in vars(tensor_type.module) if (match := _FORMULA.fullmatch(name)))
    found = (Encoding(tensor_type, bool(match["weighted"]), match["search"] or GGML) for match in names)
    return tuple(sorted(found, key=lambda encoding: (encoding.search != GGML, encoding.search, encoding.weighted)))


def uses_importance(tensor_type: TensorType) -> bool:
    """Tell whether importance weights change a type's bytes."""
    return any(encoding.weighted for encoding in encodings(tensor_type))


def choose(tensor_type: TensorType, search: str, *, weighted: bool) -> Encoding:
    """Return how rows are encoded that come with importance (`weighted`) or without; a type may ignore it.

    InputError if the type holds plain numbers, does not have the search, or needs importance and there is none.
    """
    known = encodings(tensor_type)
    searches = dict.fromkeys(encoding.search for encoding in known)
    for encoding in (Encoding(tensor_type, weighted, search), Encoding(tensor_type, False, search)):
        if encoding in known:
            return encoding
    if not known:
        raise InputError(f"{tensor_type.name} holds plain numbers; weights are not encoded to it")
    if search not in searches:
        raise InputError(f"{tensor_type.name} has no search {search!r}", expected=" or ".join(searches), found=search)
    raise InputError(
        f"{tensor_type.name} cannot be encoded without importance weights",
        remedy="Give an importance matrix, or choose a type of more bits",
    )
