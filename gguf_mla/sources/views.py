"""Tensors of a checkpoint as users of the library read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.container.view import Tensor
from gguf_mla.errors import InputError
from gguf_mla.ggtypes.shared import floats
from gguf_mla.sources.formats.plain import PlainTensor
from gguf_mla.sources.tensor import BlockSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.sources.tensor import SourceTensor


def view(source: SourceTensor) -> Tensor:
    """Return a stored tensor with its numbers and, where they are all there is to it, its bytes."""

    def values(start: int, stop: int | None) -> NDArray[np.float32]:
        found = floats.to_float32(source.read(start, stop), source.values)
        return found.reshape(-1, source.shape[-1])

    def raw(start: int, stop: int | None) -> NDArray[np.uint8]:
        if isinstance(source, PlainTensor):
            read = np.ascontiguousarray(source.read(start, stop))
            return read.reshape(-1, source.shape[-1]).view(np.uint8)
        if source.raw_type and isinstance(source, BlockSource):
            return source.read_raw(start, stop)
        raise InputError(
            f"is stored as {source.stored}, whose numbers are not in one place",
            tensor=source.name,
            remedy="Take .values(), which are decoded",
        )

    return Tensor(source.name, source.shape, source.stored, values, raw)
