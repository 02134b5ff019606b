"""The formats of weights in a checkpoint, a module each.

What is stored decides which format reads it, a tensor at a time, and never what config.json claims: expert weights in
NVFP4 lie beside attention in FP8 and norms in BF16, and a configuration outlives the weights that it was written for.
The configuration is asked only for what the tensors leave open. A module here is a format. It has

    METHODS                            the values of quantization_config.quant_method that go with it, for people
    found(stored, quantization)        what it reads of the stored tensors by name: Found
    remarks(found)                     if reading tells something of interest (see Raw): sentences on it
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from gguf_mla import discovery
from gguf_mla.errors import InputError
from gguf_mla.files.bounds import named

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import PurePath

    from gguf_mla.sources.safetensors import StoredTensor
    from gguf_mla.sources.tensor import SourceTensor

# How engines that compute in 8 or 4 bits round what flows between the weights, and the cache: not part of the weights.
_ROUNDING_OF_INPUTS = frozenset(
    f"{what}_{whole}{kind}"
    for what in ("input", "output", "activation")
    for whole in ("", "global_")
    for kind in ("scale", "zero_point")
) | {"q_scale", "k_scale", "v_scale", "kv_scale", "prob_scale", "input_scale_ub"}


class Found(NamedTuple):
    """What a format reads: `tensors` by name, and the names of the stored tensors that they are made of."""

    tensors: Mapping[str, SourceTensor]
    used: frozenset[str]


class Format(Protocol):
    """What a module here has; `remarks` is optional."""

    METHODS: tuple[str, ...]

    def found(self, stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any]) -> Found:
        """Return what it reads of these; InputError for stored tensors that do not belong together."""


@functools.cache
def formats() -> tuple[Format, ...]:
    """Every format but that of plain tensors, which is what is left."""
    modules = (importlib.import_module(name) for name in discovery.modules(__name__, __path__))
    return tuple(cast("Format", module) for module in modules if hasattr(module, "METHODS"))


class Reader:
    """Reads a checkpoint's tensors, each in the format that it is stored in.

    quantization  quantization_config of config.json, empty where there is none
    file          config.json, for errors
    notes         sentences on what was left out, once `tensors` was called
    """

    def __init__(self, quantization: Mapping[str, Any], file: PurePath) -> None:
        self._quantization, self._file = quantization, file
        self.notes: tuple[str, ...] = ()

    def tensors(self, stored: Mapping[str, StoredTensor]) -> Mapping[str, SourceTensor]:
        """Return every tensor under its name; InputError for stored tensors that no format explains."""
        ignored = [name for name in stored if name.rpartition(".")[2] in _ROUNDING_OF_INPUTS]
        left = _without(stored, frozenset(ignored))
        tensors: dict[str, SourceTensor] = {}
        for each in formats():
            found = each.found(left, self._quantization)
            tensors |= found.tensors
            left = _without(left, found.used)
        self.notes = tuple(self._notes(ignored, quantized=bool(tensors)))
        return tensors | self._plain(left)

    def remarks(self, found: Iterable[Any]) -> list[str]:
        """Return what reading has shown (see Raw), as sentences."""
        shown = list(found)
        return [said for each in formats() if hasattr(each, "remarks") for said in each.remarks(shown)]

    def _notes(self, ignored: list[str], *, quantized: bool) -> Iterable[str]:
        if ignored:
            yield (
                f"{len(ignored)} scales of activations are left out, as ggml rounds activations by itself: "
                f"{named(ignored, 2)}."
            )
        method = self._quantization.get("quant_method")
        if method is not None and not quantized:
            yield (
                f"config.json says that the weights are quantized ({method}), and no stored tensor bears that out: "
                "they are taken as they are."
            )

    def _plain(self, left: Mapping[str, StoredTensor]) -> dict[str, SourceTensor]:
        from gguf_mla.sources.formats import plain  # noqa: PLC0415 - a module here, which may import this one

        strange = next((tensor for tensor in left.values() if not plain.is_plain(tensor)), None)
        method = self._quantization.get("quant_method")
        known = sorted({word for each in formats() for word in each.METHODS})
        if strange is not None and method is not None and method not in known:
            raise _unreadable(method, self._file, strange.name)
        return {name: plain.plain(tensor) for name, tensor in left.items()}


def _without(stored: Mapping[str, StoredTensor], used: Collection[str]) -> Mapping[str, StoredTensor]:
    """Return the stored tensors without some; the same mapping where there are none."""
    return {name: tensor for name, tensor in stored.items() if name not in used} if used else stored


def format_of(quantization: Any, file: PurePath) -> Reader:
    """Return what reads a checkpoint with this quantization_config; InputError, naming the file, for a broken one."""
    method = quantization.get("quant_method") if isinstance(quantization, dict) else repr(quantization)
    if not isinstance(quantization, dict) or not isinstance(method, str | None):
        raise _unreadable(method, file)
    return Reader(quantization, file)


def _unreadable(method: object, file: PurePath, tensor: str | None = None) -> InputError:
    known = sorted({word for each in formats() for word in each.METHODS})
    return InputError(
        "quantization_config.quant_method names a method that cannot be read",
        file=file,
        tensor=tensor,
        expected=f"{', '.join(known)}, or no quantization",
        found=method,
        remedy="Convert from the original checkpoint, or one saved in BF16",
    )
