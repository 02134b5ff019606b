"""The forward pass of an MLA model in float32, one layer and one expert at a time.

Memory is the hidden states of the tokens and a piece of a matrix, whatever the model. Source: the DeepSeek-V2 and -V3
papers and DeepSeek's published modelling code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.forward import indexer, rope
from gguf_mla.forward.attention import Form, Inputs
from gguf_mla.forward.choice import Chooser
from gguf_mla.forward.layers import linear, rms_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gguf_mla.forward.model import Model
    from gguf_mla.forward.tensors import Weights

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int64]


def attention(weights: Weights, layer: int, hidden: Floats, form: Form, chooser: Chooser | None = None) -> Floats:
    """Return what the attention of a layer adds to hidden states [B, T, hidden]."""
    model, at = weights.model, f"blk.{layer}."
    x = rms_norm(hidden, weights.stack(at + "attn_norm.weight").vector(), model.eps)
    latent, k_pe = _cached(weights, at, x)
    low = _low_rank(weights, at, x) if model.q_rank else x
    q_nope, q_pe = _queries(weights, at, low)
    chosen: Sequence[Numbers | None] = [None] * len(x)
    if model.indexer is not None:
        indexes = _indexes(weights, at, x, low) if model.is_sparse(layer) else None
        chosen = (chooser or Chooser()).take(indexes, model.indexer.top_k)
    k_b, v_b = (weights.stack(at + name).all() for name in ("attn_k_b.weight", "attn_v_b.weight"))
    heads = [
        form(Inputs(q_nope[b], q_pe[b], latent[b], k_pe[b], k_b, v_b, model.softmax_scale, chosen[b]))
        for b in range(len(x))
    ]
    return linear(np.stack(heads).reshape(*x.shape[:2], -1), weights.stack(at + "attn_output.weight"))


def _cached(weights: Weights, at: str, x: Floats) -> tuple[Floats, Floats]:
    """Return the normed latent [B, T, r] and the rotated key [B, T, p]."""
    model = weights.model
    row = linear(x, weights.stack(at + "attn_kv_a_mqa.weight"))
    norm = weights.stack(at + "attn_kv_a_norm.weight").vector()
    return rms_norm(row[..., : model.kv_rank], norm, model.latent_eps), _turned(row[..., model.kv_rank :], model)


def _low_rank(weights: Weights, at: str, x: Floats) -> Floats:
    """Return the normed low-rank queries [B, T, q_rank], which the indexer reads, too."""
    low = linear(x, weights.stack(at + "attn_q_a.weight"))
    return rms_norm(low, weights.stack(at + "attn_q_a_norm.weight").vector(), weights.model.latent_eps)


def _queries(weights: Weights, at: str, low: Floats) -> tuple[Floats, Floats]:
    """Return the queries [B, T, H, n] and their rotated part [B, T, H, p]."""
    model = weights.model
    q = linear(low, weights.stack(at + ("attn_q_b.weight" if model.q_rank else "attn_q.weight")))
    q = q.reshape(*low.shape[:2], model.heads, model.nope + model.rope)
    return q[..., : model.nope], _turned(q[..., model.nope :], model)


def _indexes(weights: Weights, at: str, x: Floats, low: Floats) -> list[indexer.Index]:
    """Return the index of every sequence, from the layer's normed input and the low-rank queries."""
    parts = ("attn_q_b", low), ("attn_k", x), ("proj", x)
    q, k, shares = (linear(of, weights.stack(f"{at}indexer.{name}.weight")) for name, of in parts)
    norm, bias = (weights.stack(f"{at}indexer.k_norm.{part}").vector() for part in ("weight", "bias"))
    return [indexer.prepare(q[b], k[b], shares[b], (norm, bias), weights.model) for b in range(len(x))]


def _turned(x: Floats, model: Model) -> Floats:
    """Rotate x [B, T, ..., p] to the positions 0 … T-1."""
    positions = np.tile(np.arange(x.shape[1]), x.shape[0])
    return rope.rotate(x.reshape(len(positions), -1, model.rope), positions, model).reshape(x.shape)
