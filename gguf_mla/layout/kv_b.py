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
from gguf_mla.plan import Part

if TYPE_CHECKING:
    from numpy.typing import NDArray


def split_kv_b(kv_b: NDArray[Any], heads: int, nope: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Split kv_b [H·(n+v), r] into k_b [H, r, n] and v_b [H, v, r]; views where numpy allows it.

    `heads` is H, `nope` is n = qk_nope_head_dim. InputError when the rows do not divide into heads.
    """
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
    """Join k_b [H, r, n] and v_b [H, v, r] into kv_b [H·(n+v), r]; the inverse of `split_kv_b`."""
    if k_b.shape[0] != v_b.shape[0] or k_b.shape[1] != v_b.shape[2]:
        raise InputError(
            "k_b and v_b do not belong together",
            expected="[H, r, n] and [H, v, r]",
            found=f"{k_b.shape} and {v_b.shape}",
        )
    return np.concatenate([k_b.transpose(0, 2, 1), v_b], axis=1).reshape(-1, v_b.shape[2])


def key_parts(source: str, heads: int, nope: int, value: int) -> tuple[Part, ...]:
    """Return the parts of attn_k_b [H, r, n]: per head its first n rows, transposed."""
    step = nope + value
    return tuple(Part(source, head * step, head * step + nope, transposed=True) for head in range(heads))


def value_parts(source: str, heads: int, nope: int, value: int) -> tuple[Part, ...]:
    """Return the parts of attn_v_b [H, v, r]: per head its last v rows."""
    step = nope + value
    return tuple(Part(source, head * step + nope, (head + 1) * step) for head in range(heads))


def joined_parts(k_b: str, v_b: str, heads: int, rank: int, value: int) -> tuple[Part, ...]:
    """Return the parts of attn_kv_b [H·(n+v), r]: per head r rows of attn_k_b, transposed, and v rows of attn_v_b."""
    return tuple(
        part
        for head in range(heads)
        for part in (
            Part(k_b, head * rank, (head + 1) * rank, transposed=True),
            Part(v_b, head * value, (head + 1) * value),
        )
    )
