"""An observer is told of every product with a stored matrix, and changes nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from gguf_mla.forward import layers, prediction, walk
from gguf_mla.forward.attention import FORMS
from gguf_mla.forward.layers import Pass
from gguf_mla.forward.tensors import shapes
from tests.verify.test_forward import checkpoint_weights

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_mla.forward.tensors import Weights

TOKENS = np.random.default_rng(0).integers(5, 2000, (2, 24))
VANILLA = ("vanilla", "vanilla-union")  # which multiply attn_k_b from its other side
TABLES = ("token_embd.weight", "nextn.embed_tokens.weight")  # are looked up, not multiplied


def everything(pass_: Pass) -> list[torch.Tensor]:
    """Logits of the next token and of all predictions."""
    states, tokens = walk.hidden_states(pass_, TOKENS), TOKENS
    found = [pass_.linear(states, "output.weight")]
    for layer in range(pass_.model.layers, pass_.model.blocks):
        entered = prediction.enter(pass_, layer, states, tokens)
        tokens = tokens[:, 1:]
        states = prediction.leave(pass_, layer, walk.run_layer(pass_, layer, entered, tokens))
        found.append(pass_.linear(states, prediction.head(layer)))
    return found


@pytest.fixture(params=["v32", "glm-dsa", "glm-lite"])
def weights(request: pytest.FixtureRequest, sparse_files: Path) -> Weights:
    """Two or three layers, the first dense, and one of prediction."""
    return checkpoint_weights(sparse_files / request.param)


@pytest.mark.parametrize(
    "form", ["absorbed", "pe-first", "expanded-keys", "token-by-token", "paged", "gathered", "union"]
)
def test_rows_are_those_that_were_routed(form: str, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    model, told, routed = weights.model, Counter[tuple[str, int]](), []

    def observe(name: str, index: int, rows: torch.Tensor) -> None:
        assert rows.dtype == torch.float32
        assert rows.shape[1:] == (weights.stack(name).cols,)
        told[name, index] += len(rows)

    def route(*arguments: Any) -> Any:
        routed.append(right(*arguments))
        return routed[-1]

    right = layers.route
    monkeypatch.setattr(layers, "route", route)
    everything(Pass(weights, FORMS[form], observe=observe))
    monkeypatch.undo()

    expected = Counter[tuple[str, int]]()
    chosen = iter(chosen for chosen, _ in routed)
    for layer in range(model.blocks):
        if model.is_dense(layer):
            continue
        counts = np.bincount(next(chosen).flatten(), minlength=model.routing.experts)
        for part in ("gate", "up", "down"):
            name = f"blk.{layer}.ffn_{part}_exps.weight"
            expected |= {(name, expert): int(count) for expert, count in enumerate(counts)}
    assert next(chosen, None) is None
    for name, shape in shapes(model).items():
        rows = TOKENS.size - len(TOKENS) * name.startswith(f"blk.{model.layers}.")  # a prediction lacks the last token
        if len(shape) > 1 and not name.endswith((*TABLES, "_exps.weight")):
            expected |= {(name, index): rows for index in range(shape[0] if len(shape) > 2 else 1)}
    assert told == +expected


@pytest.mark.parametrize("form", ["absorbed", "expanded-keys", "union"])
def test_being_observed_changes_nothing(form: str, weights: Weights) -> None:
    alone, observed = (Pass(weights, FORMS[form], observe=observe) for observe in (None, lambda *_: None))
    for found, expected in zip(everything(observed), everything(alone), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_rows_of_a_head_are_what_its_matrices_multiply(weights: Weights) -> None:
    """The last head's part of the attention's output, made anew from what was told."""
    told: dict[str, torch.Tensor] = {}
    pass_ = Pass(weights, FORMS["absorbed"], observe=lambda name, _index, rows: told.update({name: rows}))
    walk.attention(pass_, 0, walk.embed(pass_, TOKENS[:1]), TOKENS[:1])
    value = told["blk.0.attn_v_b.weight"] @ pass_.matrices("blk.0.attn_v_b.weight")[-1].T
    output = told["blk.0.attn_output.weight"][:, -value.shape[1] :]
    assert (output - value).abs().max() <= 1e-5 * value.abs().max()  # the same sums, perhaps in another order


@pytest.mark.parametrize("form", VANILLA)
def test_vanilla_forms_refuse_an_observer(form: str, weights: Weights) -> None:
    with pytest.raises(ValueError, match="observe an absorbed form"):
        walk.hidden_states(Pass(weights, FORMS[form], observe=lambda *_: None), TOKENS)
