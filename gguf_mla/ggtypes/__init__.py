"""Every ggml tensor type, one file each: its numbers, and how a block of it is encoded and decoded.

A file that defines `TYPE` is a type; nothing else has to name it. Its formulas `encode`, `decode` and, where importance
weights matter, `encode_weighted` are written over lanes (`gguf_mla.lanes`). Importing this package imports neither
numpy nor numba nor gguf.
"""

from __future__ import annotations

import functools
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from gguf_mla import discovery
from gguf_mla.errors import InputError
from gguf_mla.ggtypes.tensor_type import TensorType

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TensorType", "by_id", "by_name", "stored", "types"]

# What a GGUF file may hold beside quantized weights: ggml's numbers 24 to 28.
_NUMBERS = (("I8", 24, 1), ("I16", 25, 2), ("I32", 26, 4), ("I64", 27, 8), ("F64", 28, 8))


@functools.cache
def types() -> Mapping[str, TensorType]:
    """Every type that can be encoded and decoded, by name, in the order of ggml's ids."""
    modules = map(import_module, discovery.modules(__name__, __path__))
    found_types = [module.TYPE for module in modules if hasattr(module, "TYPE")]
    return MappingProxyType(
        {tensor_type.name: tensor_type for tensor_type in sorted(found_types, key=lambda tensor_type: tensor_type.id)}
    )


@functools.cache
def stored() -> Mapping[str, TensorType]:
    """Plain numbers a file may hold and a reader must size, but nothing is encoded to: I8 … I64 and F64."""
    return MappingProxyType({name: TensorType(name, number, 1, size) for name, number, size in _NUMBERS})


def by_name(name: str) -> TensorType:
    """Return the type called `name`, in any case; InputError, listing the names, if there is none."""
    known = {**types(), **stored()}
    if name.upper() not in known:
        raise InputError(f"there is no tensor type {name!r}", remedy=f"Known types: {', '.join(known)}")
    return known[name.upper()]


def by_id(number: int) -> TensorType:
    """Return the type with ggml's id `number`; InputError, listing the ids, if there is none."""
    known = {tensor_type.id: tensor_type for tensor_type in (*types().values(), *stored().values())}
    if number not in known:
        remedy = f"Known ids: {', '.join(f'{tensor_type.id} {tensor_type.name}' for tensor_type in known.values())}"
        raise InputError(f"there is no tensor type with id {number}", remedy=remedy)
    return known[number]
