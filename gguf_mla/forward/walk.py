"""A model computed layer by layer, whatever its architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.forward.architecture import architecture_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gguf_mla.forward.architecture import State
    from gguf_mla.forward.layers import Pass

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int64]


def hidden_states(pass_: Pass, tokens: Numbers) -> Floats:
    """Return the normed output of the last layer for token sequences [B, T], float32 [B, T, hidden]."""
    state = embed(pass_, tokens)
    for layer in range(pass_.model.layers):
        state = run_layer(pass_, layer, state, tokens)
    return finish(pass_, state)


def embed(pass_: Pass, tokens: Numbers) -> State:
    """Return the state before the first layer for token sequences [B, T]."""
    return architecture_of(pass_.model).embed(pass_, tokens)


def run_layer(pass_: Pass, layer: int, state: State, tokens: Numbers) -> State:
    """Return the state after one layer."""
    return architecture_of(pass_.model).layer(pass_, layer, state, tokens)


def finish(pass_: Pass, state: State) -> Floats:
    """Return the normed output of the last layer, which the output head and multi-token prediction read."""
    return architecture_of(pass_.model).finish(pass_, state)


def attention(pass_: Pass, layer: int, hidden: Floats, tokens: Numbers) -> Floats:
    """Return what the attention of a layer adds to hidden states [B, T, hidden] of token sequences [B, T]."""
    return architecture_of(pass_.model).attention(pass_, layer, hidden, tokens)
