"""Tensors stored as BF16, F16 or F32: values as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gguf_mla.sources.safetensors import StoredTensor

METHOD = None  # a checkpoint without quantization_config

_VIEWS: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


@dataclass(frozen=True)
class PlainTensor:
    """A SourceTensor over stored floats."""

    weight: StoredTensor

    @property
    def name(self) -> str:
        """The name in the checkpoint."""
        return self.weight.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, slowest first."""
        return self.weight.shape

    @property
    def stored(self) -> str:
        """The safetensors dtype."""
        return self.weight.dtype

    @property
    def raw_type(self) -> None:
        """Floats are read and checked, never copied."""
        return

    @property
    def values(self) -> str:
        """The stored type is what `read` returns."""
        return self.weight.dtype

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows `start:stop` as stored; BF16 as uint16 bit patterns."""
        return self.weight.read(start, stop).view(_VIEWS[self.weight.dtype])

    def will_read(self, start: int, stop: int) -> None:
        """Ask the OS to fetch rows `start:stop`."""
        self.weight.will_read(start, stop)

    def was_read(self, start: int, stop: int) -> None:
        """Let the OS forget rows `start:stop`."""
        self.weight.was_read(start, stop)


def answers(quantization: Mapping[str, Any]) -> bool:
    """Whether the weights are as they are."""
    return quantization.get("quant_method") == METHOD


def tensors(stored: Mapping[str, StoredTensor], _quantization: Mapping[str, Any]) -> dict[str, PlainTensor]:
    """Return every stored tensor as a SourceTensor; InputError for a dtype that is not a plain float."""
    return {name: plain(tensor) for name, tensor in stored.items()}


def plain(tensor: StoredTensor) -> PlainTensor:
    """Return one stored tensor as a SourceTensor; InputError unless it holds BF16, F16 or F32."""
    if tensor.dtype not in _VIEWS:
        raise InputError(
            "is stored in a type that the checkpoint's configuration does not explain",
            file=tensor.file.name,
            tensor=tensor.name,
            expected="BF16, F16 or F32",
            found=tensor.dtype,
            remedy="Check quantization_config in config.json, it says how quantized weights are to be read",
        )
    return PlainTensor(tensor)
