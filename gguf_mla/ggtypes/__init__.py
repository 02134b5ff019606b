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


_IK = {
    36: "I2_S", 133: "Q6_0", 134: "IQ1_BN", 135: "IQ2_BN", 137: "IQ2_K", 138: "IQ3_K", 139: "IQ4_K", 140: "IQ5_K",
    141: "IQ6_K", 144: "IQ4_KS", 145: "IQ2_KS", 146: "IQ4_KSS", 152: "IQ5_KS", 153: "IQ2_KT", 154: "IQ3_KT",
    155: "IQ4_KT", 156: "IQ3_KS", 157: "IQ2_KL", 158: "IQ1_KT",
}  # fmt: skip
_OLD = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"}
_FOREIGN = {number: f"{name} of ik_llama.cpp" for number, name in _IK.items()} | {
    number: f"{name} of an older llama.cpp" for number, name in _OLD.items()
}


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


def foreign(number: int) -> str | None:
    """Return what a type of another program is called, "type 139 (IQ4_K of ik_llama.cpp)"; None for one of ggml.

    Nothing is known of such a type but its number and, for some, its name: its bytes can be moved and not decoded.
    """
    if any(number == known.id for known in (*types().values(), *stored().values())):
        return None
    return f"type {number} ({_FOREIGN[number]})" if number in _FOREIGN else f"type {number}"


def by_name(name: str) -> TensorType:
    """Return the type called `name`, in any case; InputError, listing the names, if there is none."""
    found = types().get(name.upper()) or stored().get(name.upper())
    if found is None:
        known = ", ".join([*types(), *stored()])
        raise InputError(f"there is no tensor type {name!r}", remedy=f"Known types: {known}")
    return found


def by_id(number: int) -> TensorType:
    """Return the type with ggml's id `number`; InputError, listing the ids, if there is none."""
    known = {tensor_type.id: tensor_type for tensor_type in (*types().values(), *stored().values())}
    if number not in known:
        remedy = f"Known ids: {', '.join(f'{tensor_type.id} {tensor_type.name}' for tensor_type in known.values())}"
        raise InputError(f"there is no tensor type with id {number}", remedy=remedy)
    return known[number]
