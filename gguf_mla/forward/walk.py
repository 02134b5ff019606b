"""A model computed layer by layer, whatever its architecture.

Who has more sequences than memory for all layers holds their states himself: `run_layer` takes some through one layer,
`run_blocks` as many as he has, a block at a time, and reads the layer once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from gguf_mla.forward.architecture import architecture_of
from gguf_mla.forward.choice import Chooser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_mla.forward.architecture import State
    from gguf_mla.forward.arrays import Floats, Ids
    from gguf_mla.forward.layers import Pass


@dataclass
class Block:
    """Some sequences on their way through the layers.

    tokens   int64 [B, T]; blocks may differ in both
    state    before the next layer
    chooser  what their sparse attention chose last, which the next layer may keep
    """

    tokens: Ids
    state: State
    chooser: Chooser = field(default_factory=Chooser)


def hidden_states(pass_: Pass, tokens: Ids) -> Floats:
    """Return the normed output of the last layer for token sequences [B, T], float32 [B, T, hidden]."""
    state = embed(pass_, tokens)
    for layer in range(pass_.model.layers):
        state = run_layer(pass_, layer, state, tokens)
    return finish(pass_, state)


def embed(pass_: Pass, tokens: Ids) -> State:
    """Return the state before the first layer for token sequences [B, T]."""
    return architecture_of(pass_.model).embed(pass_, pass_.place.ids(tokens))


def run_layer(pass_: Pass, layer: int, state: State, tokens: Ids) -> State:
    """Return the state after one layer."""
    ids = pass_.place.ids(tokens)
    computed = architecture_of(pass_.model)
    return computed.feed(pass_, layer, computed.attend(pass_, layer, state, ids), ids)


def run_blocks(pass_: Pass, layer: int, blocks: Sequence[Block]) -> None:
    """Take every block through one layer, in place; each matrix is read once, an expert for the tokens of all blocks.

    At one time there are the states of all blocks, twice, what the feed-forward part makes of them, the matrices of the
    attention, a piece of another matrix, and the attention of one block. Each block has a chooser of its own.
    """
    computed, keeping = architecture_of(pass_.model), pass_.keeping()
    for block in blocks:
        own = replace(keeping, chooser=block.chooser)
        block.state = computed.attend(own, layer, block.state, pass_.place.ids(block.tokens))
    tokens = [pass_.place.ids(block.tokens) for block in blocks]
    states = torch.cat([block.state.flatten(0, 1) for block in blocks])
    fed = computed.feed(pass_, layer, states[None], torch.cat([ids.flatten() for ids in tokens])[None])[0]
    for block, ids, part in zip(blocks, tokens, fed.split([ids.numel() for ids in tokens]), strict=True):
        block.state = part.unflatten(0, tuple(ids.shape))


def finish(pass_: Pass, state: State) -> Floats:
    """Return the normed output of the last layer, which the output head reads."""
    return architecture_of(pass_.model).finish(pass_, state)


def attention(pass_: Pass, layer: int, hidden: Floats, tokens: Ids) -> Floats:
    """Return what the attention of a layer adds to hidden states [B, T, hidden] of token sequences [B, T]."""
    return architecture_of(pass_.model).attention(pass_, layer, hidden, pass_.place.ids(tokens))
