"""Whether two stored tensors are the same, read in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gguf_mla.sources.safetensors import StoredTensor

PIECE = 1 << 20  # bytes of each that are in memory at a time


def same(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether type, shape and bytes are equal; the first difference ends it."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    for begin in range(0, one.nbytes, PIECE):
        count = min(PIECE, one.nbytes - begin)
        if (one.file.read(one.offset + begin, count) != other.file.read(other.offset + begin, count)).any():
            return False
    return True
