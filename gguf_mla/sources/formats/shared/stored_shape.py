"""The shape of a packed weight, which lies in a tensor of its own: two numbers, because words do not tell how many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from gguf_mla.sources.safetensors import StoredTensor

INTEGERS: dict[str, Any] = {"I32": np.int32, "I64": np.int64}


def stored_shape(tensor: StoredTensor) -> tuple[int, int]:
    """Return the shape that a tensor holds; InputError for anything else than two numbers above zero."""
    kind = INTEGERS.get(tensor.dtype)
    values = tensor.read().view(kind).reshape(-1).tolist() if kind and tensor.nbytes <= 16 else []
    if len(values) != 2 or min(values) < 1:
        raise InputError(
            "is not the shape of a matrix",
            file=tensor.file.name,
            tensor=tensor.name,
            expected="two numbers above zero, as I32 or I64",
            found=values or f"{list(tensor.shape)} of {tensor.dtype}",
        )
    return values[0], values[1]


def confirm(tensor: StoredTensor | None, shape: tuple[int, ...]) -> None:
    """Raise InputError unless a tensor holds this shape, which was concluded from others; None was read before."""
    if tensor is not None and (found := stored_shape(tensor)) != shape:
        raise InputError(
            "is another shape than that of tensors with the same words and scales",
            file=tensor.file.name,
            tensor=tensor.name,
            expected=list(shape),
            found=list(found),
        )
