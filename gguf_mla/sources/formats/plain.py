"""Tensors stored as BF16, F16 or F32: values as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.sources.safetensors import StoredTensor

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


def is_plain(tensor: StoredTensor) -> bool:
    """Whether a stored tensor holds floats as they are."""
    return tensor.dtype in _VIEWS


def plain(tensor: StoredTensor) -> PlainTensor:
    """Return one stored tensor as a SourceTensor; InputError unless it holds BF16, F16 or F32."""
    if tensor.dtype not in _VIEWS:
        raise InputError(
            "is stored in a type that nothing beside it explains",
            file=tensor.file.name,
            tensor=tensor.name,
            expected="BF16, F16 or F32",
            found=tensor.dtype,
            remedy="Quantized weights need their scales beside them: compare with the checkpoint that it was made from",
        )
    return PlainTensor(tensor)
