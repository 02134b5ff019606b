"""Multi-token prediction: a layer behind the last that guesses the token after the next.

At position t it reads the model's final normed state of t and the embedding of token t+1, and predicts token t+2.
Source: the DeepSeek-V3 paper, section 2.2; that the state is the normed one: DeepSeek-R1's published modelling code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.forward import layers, walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.forward.tensors import Weights

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int64]


def head(layer: int) -> str:
    """Return the name of a prediction layer's output matrix."""
    return f"blk.{layer}.nextn.shared_head_head.weight"


def enter(weights: Weights, layer: int, states: Floats, tokens: Numbers) -> Floats:
    """Return the input [B, T-1, hidden] of a prediction layer's block, for final states [B, T, hidden] of tokens."""
    model, at = weights.model, f"blk.{layer}.nextn."
    embedded = walk.embed(weights, tokens[:, 1:], at + "embed_tokens.weight")
    parts = (embedded, "enorm"), (states[:, :-1], "hnorm")
    normed = [layers.rms_norm(x, weights.stack(f"{at}{name}.weight").vector(), model.eps) for x, name in parts]
    return layers.linear(np.concatenate(normed, axis=-1), weights.stack(at + "eh_proj.weight"))


def leave(weights: Weights, layer: int, hidden: Floats) -> Floats:
    """Return the normed output of a prediction layer, which its head reads, and the next prediction layer."""
    norm = weights.stack(f"blk.{layer}.nextn.shared_head_norm.weight").vector()
    return layers.rms_norm(hidden, norm, weights.model.eps)
