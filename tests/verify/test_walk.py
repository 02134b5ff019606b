"""Layers over blocks of sequences that somebody else holds: the same states, and every matrix read once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from gguf_mla.forward import walk
from gguf_mla.forward.attention import FORMS
from gguf_mla.forward.layers import Pass
from gguf_mla.forward.walk import Block
from tests.support.close import close_together
from tests.support.weights import checkpoint_weights
from verify import rounding

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_mla.forward.tensors import Stack, Weights

SHAPES = [(1, 40), (2, 24), (1, 7)]


@dataclass
class Counted:
    """Weights that count how often each row of a matrix is read."""

    weights: Weights
    reads: Counter[tuple[str, int, int]]

    @property
    def model(self) -> Any:
        return self.weights.model

    def stack(self, name: str) -> Stack:
        stack = self.weights.stack(name)

        def read(index: int, start: int, stop: int) -> np.ndarray:
            self.reads.update((name, index, row) for row in range(start, stop))
            return stack.read(index, start, stop)

        return replace(stack, read=read)


@pytest.mark.parametrize("kind", ["v32", "glm-dsa"])  # the second layer of glm-dsa keeps the first one's choice
def test_blocks_go_through_a_layer_together(kind: str, sparse_files: Path) -> None:
    counted = Counted(checkpoint_weights(sparse_files / kind), Counter())
    rng, pass_ = np.random.default_rng(1), Pass(counted, FORMS["absorbed"])
    blocks = [Block(tokens, walk.embed(pass_, tokens)) for tokens in (rng.integers(5, 2000, shape) for shape in SHAPES)]
    alone = [Pass(counted, FORMS["absorbed"]) for _ in blocks]
    states = [block.state for block in blocks]
    for layer in range(counted.model.layers):
        states = [
            walk.run_layer(own, layer, state, block.tokens)
            for own, state, block in zip(alone, states, blocks, strict=True)
        ]
        counted.reads.clear()
        walk.run_blocks(pass_, layer, blocks)
        assert set(counted.reads.values()) == {1}
        for block, state in zip(blocks, states, strict=True):
            close_together(block.state.flatten(0, 1), state.flatten(0, 1), rounding.products(counted.model, 40))


def test_an_observer_sees_the_rows_of_all_blocks(sparse_files: Path) -> None:
    told: Counter[str] = Counter()
    weights = checkpoint_weights(sparse_files / "glm-lite")
    pass_ = Pass(weights, FORMS["absorbed"], observe=lambda name, _index, rows: told.update({name: len(rows)}))
    blocks = [Block(tokens, walk.embed(pass_, tokens)) for tokens in (np.arange(5, 29)[None], np.arange(90, 97)[None])]
    walk.run_blocks(pass_, 1, blocks)
    assert told["blk.1.attn_output.weight"] == told["blk.1.ffn_up_shexp.weight"] == 24 + 7
    assert told["blk.1.ffn_up_exps.weight"] == (24 + 7) * weights.model.routing.used
    assert told["blk.1.attn_k_b.weight"] == (24 + 7) * weights.model.heads
    assert [block.state.shape[:2] for block in blocks] == [torch.Size([1, 24]), torch.Size([1, 7])]
