"""Whole numbers packed into words by compressed-tensors, as Kimi-K2-Thinking and K2.5 are published: "pack-quantized".

    X.weight_packed      int32 [M, ⌈N/p⌉], p = ⌊32/bits⌋ integers in a word, the first in the lowest bits, each with
                         2^(bits-1) added
    X.weight_scale       BF16, F16 or F32 [M, groups]; [M, 1] or [M] one for each row, [1] one for all
    X.weight_shape       [2], which is M and N
    X.weight_zero_point  int32 [⌈M/p⌉, groups], packed likewise along the rows, or int8 [M, groups]; often none
    X.weight_g_idx       int32 [N], the group of each column, where actorder has mixed them

value = (integer - zero point) · scale, one float32 rounding. Source: compressed-tensors' description of the format.

Bits and groups are those of the scheme in config_groups that the shapes bear out. The shape is stored in a few bytes of
its own, of which a large model has seventy thousand, far apart. So of tensors that are alike in everything else the
first one's is read, and that of each other with its rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gguf_mla.errors import InputError
from gguf_mla.files.bounds import shown
from gguf_mla.sources.formats import Found
from gguf_mla.sources.formats.shared.int4 import Int4Tensor, sentences
from gguf_mla.sources.formats.shared.packed_integers import IntegerTensor, per_word
from gguf_mla.sources.formats.shared.stored_shape import stored_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gguf_mla.sources.safetensors import StoredTensor

    Source = Int4Tensor | IntegerTensor

Shape = tuple[int, int]

METHODS = ("compressed-tensors",)
NAME = "pack-quantized"
PACKED, SCALE, SHAPE, ZERO, ORDER = "_packed", "_scale", "_shape", "_zero_point", "_g_idx"
NEEDED = (PACKED, SCALE, SHAPE)
BITS = range(2, 9)
STRATEGIES = ("group", "channel", "tensor")
IN_ORDER, MIXED = (None, False, "weight", "static"), (True, "group", "dynamic")  # actorder

_SCALE_DTYPES = ("BF16", "F16", "F32")
_SCALES_OF_FLOATS = ("F8_E4M3", "F8_E8M0", "U8")


class Scheme(NamedTuple):
    """How weights are packed, as an entry of config_groups says; `group` is None where a row or all have one scale."""

    bits: int
    group: int | None
    symmetric: bool
    mixed: bool

    def groups(self, cols: int) -> int:
        """Return how many scales a row has."""
        return 1 if self.group is None else -(-cols // self.group)


class _Parts(NamedTuple):
    """The stored tensors of one weight."""

    name: str
    packed: StoredTensor
    scale: StoredTensor
    size: StoredTensor
    zero: StoredTensor | None
    order: StoredTensor | None

    def alike(self) -> tuple[Any, ...]:
        """Return what weights have in common that have the same shape, too, unless one contradicts its own words."""
        packed, scale, size = self.packed, self.scale, self.size
        others = [(part.dtype, part.shape) for part in (self.zero, self.order) if part is not None]
        return packed.dtype, packed.shape, scale.dtype, scale.shape, size.dtype, size.shape, *others

    def refuse(self, what: str, expected: object, found: object, remedy: str | None = None) -> InputError:
        """Return the error for parts that do not belong together."""
        return InputError(
            what, file=self.packed.file.name, tensor=self.name, expected=expected, found=found, remedy=remedy
        )


remarks = sentences


def found(stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any]) -> Found:
    """Join every packed weight with its scales; InputError when one lacks its scales, or has others than are stated."""
    bases = _bases(stored)
    if not bases:
        return Found({}, frozenset())
    schemes, known = _schemes(quantization), dict[tuple[Any, ...], Shape]()
    weights = [_parts(base, stored) for base in bases]
    if len(schemes) > 1:
        for parts in weights:
            parts.size.will_read(0, 1)  # many reads of a few bytes: asked for together, not one by one
    tensors = {parts.name: _tensor(parts, schemes, known) for parts in weights}
    used = {base + suffix for base in bases for suffix in NEEDED}
    used |= {part.name for parts in weights for part in (parts.zero, parts.order) if part is not None}
    return Found(tensors, frozenset(used))


def _bases(stored: Mapping[str, StoredTensor]) -> list[str]:
    ends = tuple(f".weight{suffix}" for suffix in (PACKED, SHAPE))
    named = dict.fromkeys(name.rpartition("_")[0] for name in stored if name.endswith(ends))
    return [base for base in named if _is_packed(base, stored)]


def _is_packed(base: str, stored: Mapping[str, StoredTensor]) -> bool:
    # Other formats pack floats of 4 bits under the same names, into bytes, and with bytes as scales.
    packed, scale = stored.get(base + PACKED), stored.get(base + SCALE)
    floats4 = scale is not None and scale.dtype in _SCALES_OF_FLOATS
    return not floats4 and ((packed is not None and packed.dtype == "I32") or base + SHAPE in stored)


def _parts(base: str, stored: Mapping[str, StoredTensor]) -> _Parts:
    packed, scale, size = there = [stored.get(base + suffix) for suffix in NEEDED]
    if packed is None or scale is None or size is None or base in stored:
        raise _unpaired(base, there, is_twice=base in stored)
    return _Parts(base, packed, scale, size, stored.get(base + ZERO), stored.get(base + ORDER))


def _unpaired(base: str, there: list[StoredTensor | None], *, is_twice: bool) -> InputError:
    file = next(part for part in there if part is not None).file.name
    if is_twice:
        return InputError("is there twice", file=file, tensor=base, expected="packed or plain", found="both")
    missing = NEEDED[there.index(None)]
    return InputError(
        f"its weight{missing} is missing",
        file=file,
        tensor=base,
        expected=f"a tensor {base}{missing}",
        found="none",
        remedy="It was left behind when the model was saved or merged: convert from the original",
    )


def _tensor(parts: _Parts, schemes: list[Scheme], known: dict[tuple[Any, ...], Shape]) -> Source:
    """Return a weight; `known` are the shapes of others that are alike, where one scheme stands for all."""
    alike = parts.alike()
    if (shape := known.get(alike)) is not None:
        return _made(parts, shape, schemes[0], parts.size)
    shape = stored_shape(parts.size)
    scheme = next((scheme for scheme in schemes if _fits(parts, shape, scheme)), schemes[0])
    _check(parts, shape, scheme)
    if len(schemes) == 1:
        known[alike] = shape
    return _made(parts, shape, scheme, None)


def _made(parts: _Parts, shape: Shape, scheme: Scheme, size: StoredTensor | None) -> Source:
    group = min(scheme.group or shape[1], shape[1])
    packed, scale, zero, order = parts.packed, parts.scale, parts.zero, parts.order
    if scheme.bits == 4 and scheme.group is not None and zero is None and order is None:
        return Int4Tensor(parts.name, shape, packed, scale, group, size)
    return IntegerTensor(parts.name, shape, (packed, scale, zero, order), scheme.bits, group, size)


def _fits(parts: _Parts, shape: Shape, scheme: Scheme) -> bool:
    """Whether a weight of this shape is packed so; the rest is checked when a scheme is chosen."""
    words = parts.packed.shape == (shape[0], -(-shape[1] // per_word(scheme.bits)))
    order = not scheme.mixed or parts.order is not None
    zero = scheme.symmetric or parts.zero is not None
    return words and order and zero and parts.scale.shape in _scales(shape, scheme)


def _scales(shape: Shape, scheme: Scheme) -> tuple[tuple[int, ...], ...]:
    """Return the shapes that scales may have."""
    matrix = (shape[0], scheme.groups(shape[1]))
    return (matrix,) if scheme.group is not None else (matrix, (shape[0],), (1,), (1, 1))


def _check(parts: _Parts, shape: Shape, scheme: Scheme) -> None:
    """Raise InputError unless all parts have the types and shapes of a scheme."""
    rows, cols = shape
    pack, groups = per_word(scheme.bits), scheme.groups(cols)
    if scheme.mixed and parts.order is None:
        raise parts.refuse("its columns are in another order (actorder), which is missing", parts.name + ORDER, "none")
    if not scheme.symmetric and parts.zero is None:
        raise parts.refuse("its zero points are missing", f"a tensor {parts.name}{ZERO}", "none")
    zeros = ((-(-rows // pack), groups),) if parts.zero is None or parts.zero.dtype == "I32" else ((rows, groups),)
    for tensor, dtypes, shapes in (
        (parts.packed, ("I32",), ((rows, -(-cols // pack)),)),
        (parts.scale, _SCALE_DTYPES, _scales(shape, scheme)),
        (parts.zero, ("I32", "I8"), zeros),
        (parts.order, ("I32",), ((cols,),)),
    ):
        if tensor is None:
            continue
        if tensor.dtype not in dtypes:
            raise parts.refuse(f"{tensor.name} has an unknown type", " or ".join(dtypes), tensor.dtype)
        if tensor.shape not in shapes:
            raise parts.refuse(f"{tensor.name} has the wrong shape", list(shapes[0]), list(tensor.shape))


def _schemes(quantization: Mapping[str, Any]) -> list[Scheme]:
    """Return how weights may be packed; InputError for a configuration of another format."""
    groups, form = quantization.get("config_groups"), quantization.get("format")
    entries = [entry for entry in groups.values() if isinstance(entry, dict)] if isinstance(groups, dict) else []
    weights = [
        (entry["weights"], entry.get("format") or form) for entry in entries if isinstance(entry.get("weights"), dict)
    ]
    schemes = [_scheme(scheme) for scheme, stated in weights if stated == NAME]
    if not schemes:
        stated = form if form != NAME else f"{NAME} and no weights in config_groups"
        raise _unsupported("format", f"{NAME}, with weights in config_groups", stated)
    return list(dict.fromkeys(schemes))


def _scheme(stated: Mapping[str, Any]) -> Scheme:
    bits, kind, group = stated.get("num_bits"), stated.get("type", "int"), stated.get("group_size")
    symmetric, order = stated.get("symmetric", True), stated.get("actorder")
    strategy = stated.get("strategy") or ("group" if group not in (None, -1) else "channel")
    if kind != "int":
        raise _unsupported("weights.type", "int", kind)
    if type(bits) is not int or bits not in BITS:
        raise _unsupported("weights.num_bits", f"{BITS[0]} to {BITS[-1]}", bits)
    if strategy not in STRATEGIES:
        raise _unsupported("weights.strategy", " or ".join(STRATEGIES), strategy)
    if type(symmetric) is not bool:
        raise _unsupported("weights.symmetric", "true or false", symmetric)
    if order not in IN_ORDER and order not in MIXED:
        raise _unsupported("weights.actorder", "null, weight or group", order)
    if strategy != "group":
        return Scheme(bits, None, symmetric, order in MIXED)
    if type(group) is not int or group < 1:
        raise _unsupported("weights.group_size", "a number above zero", group)
    return Scheme(bits, group, symmetric, order in MIXED)


def _unsupported(key: str, expected: str, found: object) -> InputError:
    return InputError(
        f"config.json: quantization_config: this {key} is not supported",
        expected=expected,
        found=shown(found),
        remedy="Convert from a checkpoint in BF16",
    )
