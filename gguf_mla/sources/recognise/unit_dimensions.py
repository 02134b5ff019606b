"""Dimensions of one, as conversions between frameworks leave them: a norm as [1, n], a matrix as [m, n, 1, 1]."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gguf_mla.sources.recognise.reading import examples

if TYPE_CHECKING:
    from gguf_mla.sources.recognise.reading import Reading
    from gguf_mla.sources.safetensors import StoredTensor

VECTORS = ("norm.weight", ".bias", "_bias")  # how the names of what has one dimension end


def recognise(reading: Reading) -> Reading:
    """Return the reading with vectors of one dimension and matrices of two; the bytes are the same."""
    units = [tensor for tensor in reading.stored.values() if 1 in tensor.shape and len(tensor.shape) > 1]
    shapes = {tensor.name: shape for tensor in units if (shape := _shape(tensor)) != tensor.shape}
    if not shapes:
        return reading
    stored = {n: replace(t, shape=shapes[n]) if n in shapes else t for n, t in reading.stored.items()}
    note = f"unit dimensions: {len(shapes)} tensors have dimensions of one, which are left out: {examples(shapes)}."
    return replace(reading, stored=stored).noted(note)


def _shape(tensor: StoredTensor) -> tuple[int, ...]:
    shape = tensor.shape
    wide = tuple(size for size in shape if size != 1)
    if len(wide) == 1 and tensor.name.endswith(VECTORS):
        return wide
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
