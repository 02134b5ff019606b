"""A model computed layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.forward.attention import FORMS, Form
from gguf_mla.forward.choice import Chooser
from gguf_mla.forward.layers import feed_forward, rms_norm
from gguf_mla.forward.mla import attention

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.forward.tensors import Weights

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
