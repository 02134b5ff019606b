"""Tensors of 64-bit floats, as numpy and some pruning tools save them: read as F32, each value rounded once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.sources.recognise.reading import examples
from gguf_mla.sources.safetensors import StoredTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.sources.recognise.reading import Reading


@dataclass(frozen=True, slots=True)
class Halved(StoredTensor):
    """A tensor that lies in the file as F64 and is read as F32; `offset` and `nbytes` are those of the file."""

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return rows `start:stop` as bytes of F32 [rows, row_bytes]."""
        wide = replace_type(self).read(start, stop).view(np.float64)
        with np.errstate(over="ignore"):  # infinity is found and named when the values are looked at
            return wide.astype(np.float32).view(np.uint8)

    def will_read(self, start: int, stop: int) -> None:
        """Ask the OS to fetch rows `start:stop`."""
        replace_type(self).will_read(start, stop)

    def was_read(self, start: int, stop: int) -> None:
        """Let the OS forget rows `start:stop`."""
        replace_type(self).was_read(start, stop)


def replace_type(tensor: Halved) -> StoredTensor:
    """Return the tensor as it lies in the file."""
    return StoredTensor(tensor.name, "F64", tensor.shape, tensor.offset, tensor.nbytes, tensor.file)


def recognise(reading: Reading) -> Reading:
    """Return the reading with F32 in place of F64."""
    wide = [name for name, tensor in reading.stored.items() if tensor.dtype == "F64"]
    if not wide:
        return reading
    stored = {name: _halved(tensor) if tensor.dtype == "F64" else tensor for name, tensor in reading.stored.items()}
    note = f"double precision: read as F32 what is stored as F64, {len(wide)} of the tensors: {examples(wide)}."
    return replace(reading, stored=stored).noted(note)


def _halved(tensor: StoredTensor) -> Halved:
    return Halved(tensor.name, "F32", tensor.shape, tensor.offset, tensor.nbytes, tensor.file)
