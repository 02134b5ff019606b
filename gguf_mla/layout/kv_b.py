"""`kv_b_proj` and its halves: how MLA files split it and how the halves join again.

kv_b_proj.weight is [H·(n+v), r] and holds for every head n rows of key projection and then v rows of value
projection. MLA files store attn_k_b [H, r, n], the key rows transposed per head, and attn_v_b [H, v, r], so that the
attention runs on the latent row. Source: the DeepSeek-V2 paper, equations 9-11, and the tensors of llama.cpp's
deepseek2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def split_kv_b(kv_b: NDArray[Any], heads: int, nope: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Split kv_b [H·(n+v), r] into k_b [H, r, n] and v_b [H, v, r]; views where numpy allows it.

    `heads` is H, `nope` is n = qk_nope_head_dim. InputError when it is not a matrix, or the rows do not divide into
    heads.
    """
    kv_b = _array(kv_b, "kv_b_proj", 2)
    rows, rank = kv_b.shape
    if heads < 1 or rows % heads or rows // heads <= nope:
        raise InputError(
            "kv_b_proj does not divide into heads",
            expected=f"a multiple of {heads} heads x more than {nope} rows",
            found=f"{rows} rows",
        )
    by_head = kv_b.reshape(heads, rows // heads, rank)
    return by_head[:, :nope].transpose(0, 2, 1), by_head[:, nope:]


def join_kv_b(k_b: NDArray[Any], v_b: NDArray[Any]) -> NDArray[Any]:
    """Join k_b [H, r, n] and v_b [H, v, r] into kv_b [H·(n+v), r]; the inverse of `split_kv_b`.

    InputError when they have other dimensions, or do not belong together.
    """
    k_b, v_b = _array(k_b, "k_b", 3), _array(v_b, "v_b", 3)
    if k_b.shape[0] != v_b.shape[0] or k_b.shape[1] != v_b.shape[2]:
        raise InputError(
            "k_b and v_b do not belong together",
            expected="[H, r, n] and [H, v, r]",
            found=f"{k_b.shape} and {v_b.shape}",
        )
    return np.concatenate([k_b.transpose(0, 2, 1), v_b], axis=1).reshape(-1, v_b.shape[2])


def _array(values: Any, name: str, dimensions: int) -> NDArray[Any]:
    """Return an array, or lists of equal length as one; InputError for another number of dimensions."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(f"{name} has rows of unequal length", remedy="Give an array") from None
    if array.ndim != dimensions:
        raise InputError(f"{name} has another shape", expected=f"{dimensions} dimensions", found=f"{array.shape}")
    return array
