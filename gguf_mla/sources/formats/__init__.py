"""The formats of weights in a checkpoint, a module each.

A module here is a format. It has

    METHOD                             the value of quantization_config.quant_method that it reads, for people
    answers(quantization)              whether it reads a checkpoint with this quantization_config, which may be empty
    tensors(stored, quantization)      the tensors by name, of the stored ones by name
    remarks(found)                     if reading tells something of interest (see Raw): sentences on it
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any, Protocol, cast

from gguf_mla import discovery
from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import PurePath

    from gguf_mla.sources.safetensors import StoredTensor
    from gguf_mla.sources.tensor import SourceTensor


class Format(Protocol):
    """What a module here has; `remarks` is optional."""

    METHOD: str | None

    def answers(self, quantization: Mapping[str, Any]) -> bool:
        """Whether this format reads a checkpoint with this quantization_config."""

    def tensors(
        self, stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any]
    ) -> Mapping[str, SourceTensor]:
        """Return every tensor under its name; InputError for stored tensors that do not belong together."""


@functools.cache
def formats() -> tuple[Format, ...]:
    """Every format."""
    return tuple(cast("Format", importlib.import_module(name)) for name in discovery.modules(__name__, __path__))


def format_of(quantization: Any, file: PurePath) -> Format:
    """Return the format that a quantization_config calls for; InputError, which names the file, where none reads it."""
    if isinstance(quantization, dict):
        for found in formats():
            if found.answers(quantization):
                return found
    raise InputError(
        "quantization_config.quant_method names a method that cannot be read",
        file=file,
        expected=f"{', '.join(sorted(found.METHOD for found in formats() if found.METHOD))}, or no quantization",
        found=quantization.get("quant_method") if isinstance(quantization, dict) else repr(quantization),
        remedy="Convert from the original checkpoint, or one saved in BF16",
    )
