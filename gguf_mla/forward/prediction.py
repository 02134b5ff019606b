"""Multi-token prediction: a layer after the last that guesses the token after the next.

At position t it reads the model's final normed state of t and the embedding of token t+1, and predicts token t+2.
Source: the DeepSeek-V3 paper, section 2.2; that the state is the normed one: DeepSeek-R1's published modelling code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gguf_mla.forward import layers

if TYPE_CHECKING:
    from gguf_mla.forward.arrays import Floats, Ids
    from gguf_mla.forward.layers import Pass


def head(layer: int) -> str:
    """Return the name of a prediction layer's output matrix."""
    return f"blk.{layer}.nextn.shared_head_head.weight"


def enter(pass_: Pass, layer: int, states: Floats, tokens: Ids) -> Floats:
    """Return the input [B, T-1, hidden] of a prediction layer's block, for final states [B, T, hidden] of tokens."""
    model, at = pass_.model, f"blk.{layer}.nextn."
    embedded = layers.lookup(pass_, at + "embed_tokens.weight", pass_.place.ids(tokens)[:, 1:])
    parts = (embedded, "enorm"), (states[:, :-1], "hnorm")
    normed = [layers.rms_norm(x, pass_.vector(f"{at}{name}.weight"), model.eps) for x, name in parts]
    return pass_.linear(torch.cat(normed, dim=-1), at + "eh_proj.weight")


def leave(pass_: Pass, layer: int, hidden: Floats) -> Floats:
    """Return the normed output of a prediction layer, which its head reads, and the next prediction layer."""
    norm = pass_.vector(f"blk.{layer}.nextn.shared_head_norm.weight")
    return layers.rms_norm(hidden, norm, pass_.model.eps)
