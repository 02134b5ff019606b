"""What layers of every architecture are made of: products, norms, routing, experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.forward import kernels
from gguf_mla.forward.model import BEST_TWO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gguf_mla.forward.model import Routing
    from gguf_mla.forward.tensors import Stack, Weights

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int64]


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
