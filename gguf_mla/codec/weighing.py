"""Importance that says nothing about some columns: zeros, where no token of a text has reached them.

A search that weighs errors with nothing finds any scale as good as another, and zero is one, so the weights of such
columns would be wiped out. A block without importance is encoded without, and a group of columns that share a scale
counts as much as the least important other column of its block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla import ggtypes
from gguf_mla.codec.encoding import GGML, Encoding, encodings
from gguf_mla.codec.on_cpu import CPU
from gguf_mla.codec.rows import encode as encode_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.codec.device import Device
    from gguf_mla.ggtypes import TensorType

    Array = np.ndarray[Any, Any]

GROUP = 16  # columns; the smallest group that shares a scale in any type


def encode(
    x: Array, type_name: str, *, source: str = "F32", importance: Array | None = None, device: Device = CPU
) -> Array:
    """Encode rows as `codec.encode` does, except where importance says nothing; the arguments are explained there."""
    kind = ggtypes.by_name(type_name)
    if importance is None or kind.block == 1 or not importance.size or importance.all():
        return encode_rows(x, type_name, source=source, importance=importance, device=device)
    weights, blank = filled(importance, kind)
    out = encode_rows(x, type_name, source=source, importance=weights, device=device)
    if blank.any() and Encoding(kind, False, GGML) in encodings(kind):
        plain = encode_rows(x, type_name, source=source, device=device)
        of_blocks = (len(out), -1, kind.bytes)
        out.reshape(of_blocks)[:, blank] = plain.reshape(of_blocks)[:, blank]
    return out


def filled(importance: NDArray[np.float32], kind: TensorType) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return importance without groups of zeros, [cols], and which blocks had none at all, [blocks]."""
    if importance.size % kind.block:
        return importance, np.zeros(0, np.bool_)  # encoding will say that the rows do not fit
    blocks = importance.reshape(-1, kind.block).copy()
    blank: NDArray[np.bool_] = np.asarray(~blocks.any(axis=1))
    blocks[blank] = 1
    least = np.where(blocks > 0, blocks, np.inf).min(axis=1)
    group = min(GROUP, kind.block)
    groups = blocks.reshape(len(blocks), -1, group)
    empty = ~groups.any(axis=2)
    groups[empty] = np.broadcast_to(least[:, None], empty.shape)[empty][:, None]
    return blocks.reshape(-1), blank
