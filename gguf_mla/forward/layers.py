"""What layers of every architecture are made of: products, norms, routing, experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.forward import kernels
from gguf_mla.forward.attention import FORMS, Form
from gguf_mla.forward.choice import Chooser
from gguf_mla.forward.model import BEST_TWO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gguf_mla.forward.model import Model, Routing
    from gguf_mla.forward.tensors import Weights

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int64]

Observer = Callable[[str, int, "Floats"], object]
"""Is told of a product: the tensor's name, which of its matrices (head or expert), the rows [N, cols] it multiplies."""


@dataclass(frozen=True)
class Pass:
    """One pass of some tokens through a model: all that its layers need beside their state.

    weights  the model's tensors
    form     how latent attention is computed
    chooser  carries the choices of sparse attention from layer to layer
    observe  is told of every product with a stored matrix, whose name is the one asked for: tied output weights are
             "output.weight". Vanilla forms multiply attn_k_b from its other side and refuse to be observed
    """

    weights: Weights
    form: Form = FORMS["vanilla"]
    chooser: Chooser = field(default_factory=Chooser)
    observe: Observer | None = None

    @property
    def model(self) -> Model:
        """What the weights are of."""
        return self.weights.model

    def vector(self, name: str) -> Floats:
        """Return a stored vector, float32 [cols]."""
        return self.weights.stack(name).vector()

    def linear(self, x: Floats, name: str, index: int = 0) -> Floats:
        """Return x·Wᵀ for x [..., cols] and one matrix of a stored stack, [..., rows]."""
        pieces = [piece for _, piece in self.pieces(x, name, index)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1)

    def pieces(self, x: Floats, name: str, index: int = 0) -> Iterator[tuple[int, Floats]]:
        """Yield x·Wᵀ in pieces, reading W in pieces: the first row of W, [..., rows].

        All products with stored matrices are here, but those of a form of attention with its heads' matrices.
        """
        if self.observe is not None:
            self.observe(name, index, x.reshape(-1, x.shape[-1]))
        for start, rows in self.weights.stack(name).chunks(index):
            yield start, x @ rows.T


def lookup(pass_: Pass, table: str, tokens: Numbers) -> Floats:
    """Return the rows of a table of embeddings for tokens [...], float32 [..., hidden]."""
    stack = pass_.weights.stack(table)
    unique, where = np.unique(tokens, return_inverse=True)
    rows = np.concatenate([stack.read(0, token, token + 1) for token in unique.tolist()])
    return rows[where.reshape(tokens.shape)]


def feed_forward(pass_: Pass, layer: int, hidden: Floats) -> Floats:
    """Return what the MLP or the experts of a layer add to hidden states [B, T, hidden]."""
    model, at = pass_.model, f"blk.{layer}."
    x = rms_norm(hidden, pass_.vector(at + "ffn_norm.weight"), model.eps)
    flat = x.reshape(-1, model.hidden)
    if model.is_dense(layer):
        return _mlp(pass_, at, "", flat).reshape(x.shape)
    return (_experts(pass_, at, flat) + _mlp(pass_, at, "_shexp", flat)).reshape(x.shape)


def _experts(pass_: Pass, at: str, x: Floats) -> Floats:
    """Return the weighted sum of every token's experts, [N, hidden]; every expert is read once."""
    routing = pass_.model.routing
    logits = pass_.linear(x, at + "ffn_gate_inp.weight")
    bias = pass_.vector(at + "exp_probs_b.bias") if routing.corrected else np.float32(0)
    chosen, shares = route(logits, bias, routing)
    return mixed(pass_, at, x, chosen, shares)


def mixed(pass_: Pass, at: str, x: Floats, chosen: Numbers, shares: Floats) -> Floats:
    """Return the sum of the experts that tokens x [N, hidden] have chosen, weighted by shares [N, K], [N, hidden]."""
    out = np.zeros_like(x)
    for expert in np.unique(chosen).tolist():
        tokens, slots = np.nonzero(chosen == expert)
        out[tokens] += _mlp(pass_, at, "_exps", x[tokens], expert) * shares[tokens, slots, None]
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


def _mlp(pass_: Pass, at: str, suffix: str, x: Floats, index: int = 0) -> Floats:
    """Return down(silu(gate x) · up x) of rows [N, hidden]; suffix: "", "_exps" or "_shexp"."""
    gate, up, down = (f"{at}ffn_{part}{suffix}.weight" for part in ("gate", "up", "down"))
    opened = pass_.linear(x, gate, index)
    return pass_.linear(opened * sigmoid(opened) * pass_.linear(x, up, index), down, index)


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """Return x / √(mean x² + eps) · weight over the last axis."""
    mean = np.mean(x * x, axis=-1, keepdims=True)
    normed: Floats = x / np.sqrt(mean + np.float32(eps)) * weight
    return normed
