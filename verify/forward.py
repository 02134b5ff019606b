"""The forward pass of an MLA model in float32, one layer and one expert at a time.

Memory is the hidden states of the tokens and a piece of a matrix, whatever the model. Source: the DeepSeek-V2 and -V3
papers and DeepSeek's published modelling code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from verify import indexer, kernels, rope
from verify.attention import FORMS, Form, Inputs
from verify.choice import Chooser
from verify.model import BEST_TWO

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from verify.model import Model, Routing
    from verify.tensors import Stack, Weights

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int64]


def embed(weights: Weights, tokens: Numbers, table: str = "token_embd.weight") -> Floats:
    """Return the embeddings of tokens [...], float32 [..., hidden]."""
    stack = weights.stack(table)
    unique, where = np.unique(tokens, return_inverse=True)
    rows = np.concatenate([stack.read(0, token, token + 1) for token in unique.tolist()])
    return rows[where.reshape(tokens.shape)]


def hidden_states(weights: Weights, tokens: Numbers, form: Form = FORMS["vanilla"]) -> Floats:
    """Return the normed output of the last layer for token sequences [B, T], float32 [B, T, hidden]."""
    hidden, chooser = embed(weights, tokens), Chooser()
    for layer in range(weights.model.layers):
        hidden = run_layer(weights, layer, hidden, form, chooser)
    return final_norm(weights, hidden)


def final_norm(weights: Weights, hidden: Floats) -> Floats:
    """Return the normed output of the last layer, which the output head and multi-token prediction read."""
    return rms_norm(hidden, weights.stack("output_norm.weight").vector(), weights.model.eps)


def run_layer(weights: Weights, layer: int, hidden: Floats, form: Form, chooser: Chooser | None = None) -> Floats:
    """Return hidden states [B, T, hidden] behind one layer; `chooser` carries the choices of sparse attention."""
    hidden = hidden + attention(weights, layer, hidden, form, chooser)
    return hidden + feed_forward(weights, layer, hidden)


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


def feed_forward(weights: Weights, layer: int, hidden: Floats) -> Floats:
    """Return what the MLP or the experts of a layer add to hidden states [B, T, hidden]."""
    model, at = weights.model, f"blk.{layer}."
    x = rms_norm(hidden, weights.stack(at + "ffn_norm.weight").vector(), model.eps)
    flat = x.reshape(-1, model.hidden)
    if model.is_dense(layer):
        return _mlp(weights, at, "", flat).reshape(x.shape)
    return (_experts(weights, at, flat) + _mlp(weights, at, "_shexp", flat)).reshape(x.shape)


def _experts(weights: Weights, at: str, x: Floats) -> Floats:
    """Return the weighted sum of every token's experts, [N, hidden]; every expert is read once."""
    model = weights.model
    logits = linear(x, weights.stack(at + "ffn_gate_inp.weight"))
    bias = weights.stack(at + "exp_probs_b.bias").vector() if model.routing.corrected else np.float32(0)
    chosen, shares = route(logits, bias, model.routing)
    out = np.zeros_like(x)
    for expert in np.unique(chosen).tolist():
        tokens, place = np.nonzero(chosen == expert)
        out[tokens] += _mlp(weights, at, "_exps", x[tokens], expert) * shares[tokens, place, None]
    return out


def route(logits: Floats, bias: Floats | np.float32, routing: Routing) -> tuple[Numbers, Floats]:
    """Return every token's experts and their weights, [N, K], for router logits [N, E].

    The bias decides only who is chosen; the weights are of the scores without it.
    """
    scores = softmax(logits) if routing.score == "softmax" else sigmoid(logits)
    chosen = np.empty((len(logits), routing.used), np.int64)
    kernels.choose(scores + bias, routing.groups, routing.groups_used, routing.group_score == BEST_TWO, chosen)
    shares = np.take_along_axis(scores, chosen, axis=1)
    if routing.normalised:
        shares = shares / (shares.sum(axis=1, keepdims=True) + np.float32(1e-20))
    weights: Floats = shares * np.float32(routing.scale)
    return chosen, weights


def softmax(x: Floats) -> Floats:
    """Return the softmax over the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + e^-x); 0 where e^-x overflows."""
    with np.errstate(over="ignore"):
        values: Floats = np.float32(1) / (np.float32(1) + np.exp(-x))
    return values


def _mlp(weights: Weights, at: str, kind: str, x: Floats, index: int = 0) -> Floats:
    """Return down(silu(gate x) · up x) of rows [N, hidden]."""
    gate, up, down = (weights.stack(f"{at}ffn_{part}{kind}.weight") for part in ("gate", "up", "down"))
    opened = linear(x, gate, index)
    return linear(opened * sigmoid(opened) * linear(x, up, index), down, index)


def linear(x: Floats, stack: Stack, index: int = 0) -> Floats:
    """Return x·Wᵀ for x [..., cols], reading W in pieces."""
    out = np.empty((*x.shape[:-1], stack.rows), np.float32)
    for start, rows in stack.chunks(index):
        np.matmul(x, rows.T, out=out[..., start : start + len(rows)])
    return out


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """Return x / √(mean x² + eps) · weight over the last axis."""
    mean = np.mean(x * x, axis=-1, keepdims=True)
    normed: Floats = x / np.sqrt(mean + np.float32(eps)) * weight
    return normed


def logits(weights: Weights, hidden: Floats, head: str = "output.weight") -> Iterator[tuple[int, Floats]]:
    """Yield the logits of normed hidden states [N, hidden] in pieces: the first token, [N, tokens]."""
    for start, rows in weights.stack(head).chunks():
        yield start, hidden @ rows.T
