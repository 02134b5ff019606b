"""Multi-token prediction against transformers' layer for it, around its block of the same model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_mla.forward import prediction, walk
from gguf_mla.forward.attention import FORMS
from gguf_mla.forward.layers import Pass
from tests.support import hub
from tests.support.close import close_logits
from tests.support.command import convert
from tests.support.judges import Transformers, prompts
from tests.support.weights import checkpoint_weights, gguf_weights
from verify.measures import agreement

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_mla.forward.model import Model
    from gguf_mla.forward.tensors import Weights

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # transformers' own

LAYERS, TOKENS = 2, 60


def predicted(weights: Weights, prompt: list[int], form: str = "vanilla") -> np.ndarray:
    """Logits of the token after the next at every position but the last."""
    tokens = np.array([prompt])
    states = walk.hidden_states(Pass(weights), tokens)
    pass_ = Pass(weights, FORMS[form])
    entered = prediction.enter(pass_, LAYERS, states, tokens)
    found = prediction.leave(pass_, LAYERS, walk.run_layer(pass_, LAYERS, entered, tokens[:, 1:]))
    return pass_.linear(found[0], prediction.head(LAYERS)).numpy()


def judged(reference: Transformers, directory: Path, prompt: list[int]) -> np.ndarray:
    """The same from transformers' MtpLayer."""
    import torch
    from transformers.modeling_layers import MtpLayer

    model = reference._model
    layer = MtpLayer(model.config, type(model.model.layers[-1]), type(model.model.norm), LAYERS - 1).eval()
    stored = layer_weights(directory)
    head, embeddings = stored.pop("shared_head.head.weight"), stored.pop("embed_tokens.weight")
    layer.load_state_dict(renamed(stored))
    tokens = torch.tensor([prompt])
    positions = torch.arange(1, len(prompt))[None]
    with torch.inference_mode():
        states = model.model(tokens, use_cache=False).last_hidden_state[:, :-1]
        embedded = embeddings[tokens[:, 1:]]
        layer.use_post_norm = False  # GLM-5's block returns its choice, too, which this layer's norm does not expect
        found = layer(
            embedded,
            states,
            position_embeddings=model.model.rotary_emb(embedded, position_ids=positions),
            attention_mask=torch.full((1, 1, len(prompt) - 1, len(prompt) - 1), -torch.inf).triu(1),
            position_ids=positions,
            past_key_values=None,
        )
        out = layer.post_norm(found[0] if isinstance(found, tuple) else found)
        return np.asarray((out @ head.T)[0])


def layer_weights(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    prefix = f"model.layers.{LAYERS}."
    shards = [load_file(shard) for shard in sorted(directory.glob("*.safetensors"))]
    return {name.removeprefix(prefix): x.float() for shard in shards for name, x in shard.items() if prefix in name}


def renamed(stored: dict[str, Any]) -> dict[str, Any]:
    """The names of MtpLayer: the block under its own, the experts fused as transformers 5 has them in memory."""
    import torch

    own = {name: stored[name] for name in ("eh_proj.weight", "enorm.weight", "hnorm.weight")}
    own["post_norm.weight"] = stored["shared_head.norm.weight"]
    experts = len([name for name in stored if name.endswith("gate_proj.weight") and ".experts." in name])
    parts = {
        part: torch.stack([stored[f"mlp.experts.{expert}.{part}_proj.weight"] for expert in range(experts)])
        for part in ("gate", "up", "down")
    }
    block = {name: x for name, x in stored.items() if name.startswith(("self_attn", "mlp", "input", "post_attention"))}
    block = {name: x for name, x in block.items() if ".experts." not in name}
    block["mlp.experts.gate_up_proj"] = torch.cat([parts["gate"], parts["up"]], dim=1)
    block["mlp.experts.down_proj"] = parts["down"]
    return own | {f"mtp_block.{name}": x for name, x in block.items()}


@pytest.mark.usefixtures("judges")
@pytest.mark.parametrize("kind", ["v32", "glm-dsa", "glm-lite", "v3"])
def test_predictions_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    directory = hub.write(tmp_path / kind, kind, num_hidden_layers=LAYERS)
    reference = Transformers(directory)
    (prompt,) = prompts(reference.vocabulary, [TOKENS])
    weights = checkpoint_weights(directory)
    found, expected = predicted(weights, prompt), judged(reference, directory, prompt)
    assert agreement(found, expected).cosine >= 0.9999999
    close_logits(found, expected, with_prediction(weights.model))


def with_prediction(model: Model) -> Model:
    """The model whose last layer is the one that predicts."""
    return replace(model, layers=model.layers + 1)


def test_a_file_predicts_what_its_checkpoint_does(tmp_path: Path) -> None:
    directory = hub.write(tmp_path / "model", "v32", num_hidden_layers=LAYERS, n_routed_experts=4)
    convert(directory, tmp_path / "out.gguf", "F32")
    (prompt,) = prompts(2048, [TOKENS])
    found = predicted(gguf_weights(tmp_path / "out.gguf"), prompt)
    np.testing.assert_array_equal(found, predicted(checkpoint_weights(directory), prompt))
    sparse = predicted(gguf_weights(tmp_path / "out.gguf"), prompt, "gathered")
    close_logits(sparse, found, with_prediction(gguf_weights(tmp_path / "out.gguf").model))
