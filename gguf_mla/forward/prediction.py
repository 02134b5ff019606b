"""Multi-token prediction: a layer after the last that guesses the token after the next.

At position t it reads what the model has made of t and the embedding of token t+1, and predicts token t+2. What it does
around its block is its architecture's affair (`Predicting`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.forward.architecture import architecture_of

if TYPE_CHECKING:
    from gguf_mla.forward.architecture import State
    from gguf_mla.forward.arrays import Floats, Ids
    from gguf_mla.forward.layers import Pass


def head(layer: int) -> str:
    """Return the name of a prediction layer's output matrix."""
    return f"blk.{layer}.nextn.shared_head_head.weight"


def begin(pass_: Pass, state: State) -> State:
    """Return what the first prediction layer reads, for the state after the model's last layer."""
    return architecture_of(pass_.model).predicting.begin(pass_, state)


def enter(pass_: Pass, layer: int, states: State, tokens: Ids) -> State:
    """Return the state [B, T-1, ...] before a prediction layer's block, for what it reads of tokens [B, T]."""
    return architecture_of(pass_.model).predicting.enter(pass_, layer, states, pass_.place.ids(tokens))


def leave(pass_: Pass, layer: int, state: State) -> State:
    """Return what the next prediction layer reads, for the state after a prediction layer's block."""
    return architecture_of(pass_.model).predicting.leave(pass_, layer, state)


def read(pass_: Pass, layer: int, states: State) -> Floats:
    """Return what a prediction layer's head reads of what it leaves, normed, [B, T, hidden]."""
    return architecture_of(pass_.model).predicting.read(pass_, layer, states)
