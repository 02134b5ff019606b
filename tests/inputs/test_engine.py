"""What other tools have left, converted and run in a real llama.cpp, gives the logprobs of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

from tests.inputs.cases import CASES
from tests.inputs.changes import dense, scaling, without_shared
from tests.inputs.workshop import Model, base, fuse_experts
from tests.support.command import convert
from tests.support.judges import Transformers, largest_difference, prompts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.judges import Engine

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # transformers' and torch's own
]

LIMIT, FP8_LARGEST = 2e-4, 448.0
TOKENS = 256
LENGTHS = (1, 5, 21, 64, 128)
# Heads and ranks of the published models: the engine has kernels for these only.
SIZES: dict[str, Any] = {"q_lora_rank": 256, "kv_lora_rank": 512, "num_attention_heads": 4, "num_key_value_heads": 4}


def plain(kind: str = "v3", **changes: Any) -> Model:
    return base(kind, **{**SIZES, "rope_scaling": None, "n_group": 1, "topk_group": 1, **changes})


def zeros_for_shared(model: Model) -> None:
    for name, tensor in list(model.tensors.items()):
        if ".shared_experts." in name:
            model.add(name, np.zeros(tensor.shape, np.float32))


def pruned(model: Model) -> None:
    model.config["n_group"] = 1


def dense_as_transformers_has_it(model: Model) -> None:
    fresh = plain(first_k_dense_replace=2, num_nextn_predict_layers=0)
    model.tensors, model.config = fresh.tensors, fresh.config


def dense_here(model: Model) -> None:
    dense(model)
    fresh = plain(first_k_dense_replace=2, num_nextn_predict_layers=0)
    model.tensors, model.config = (
        fresh.tensors,
        {**fresh.config, **{k: v for k, v in model.config.items() if v is None}},
    )


def linear(model: Model) -> None:
    scaling(type="linear", factor=4.0)(model)


def yarn(**scales: float) -> Callable[[Model], None]:
    return scaling(type="yarn", rope_type="yarn", factor=40.0, original_max_position_embeddings=4096, **scales)


def per_channel(model: Model, *, meant: bool) -> None:
    """Store every projection as FP8 with a scale for each row, or as the values that those mean."""
    for name, tensor in list(model.tensors.items()):
        if not name.endswith("_proj.weight"):
            continue
        values = np.ascontiguousarray(tensor.make()).view(ml_dtypes.bfloat16).astype(np.float32)
        scale = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-6) / np.float32(FP8_LARGEST)
        codes = (values / scale).astype(ml_dtypes.float8_e4m3fn)
        if meant:
            model.add(name, codes.astype(np.float32) * scale)
        else:
            model.add(name, codes.view(np.uint8), "F8_E4M3")
            model.add(name + "_scale", scale)
    if not meant:
        model.config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "float-quantized"}


# The tensors that transformers gets, and those that are converted.
VARIANTS: dict[str, tuple[Callable[[Model], object], Callable[[Model], object], tuple[str, ...]]] = {
    "fused experts": (lambda _: None, lambda m: fuse_experts(m, 1), ()),
    "no shared experts": (zeros_for_shared, without_shared(0), ()),
    "dense": (dense_as_transformers_has_it, dense_here, ()),
    "one group": (pruned, lambda m: m.config.update(n_group=3, topk_group=1), ("--set", "n_group=1")),
    "linear scaling": (linear, linear, ()),
    "YaRN without mscale": (yarn(), yarn(), ()),
    "YaRN with two scales": (yarn(mscale=0.5, mscale_all_dim=1.0), yarn(mscale=0.5, mscale_all_dim=1.0), ()),
    "FP8 per channel": (lambda m: per_channel(m, meant=True), lambda m: per_channel(m, meant=False), ()),
    "a prefix": (lambda _: None, lambda m: m.rename(lambda n: "module." + n), ()),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logprobs_are_those_of_transformers(name: str, engine: Callable[..., Engine], tmp_path: Path) -> None:
    judged, mine, options = VARIANTS[name]
    reference, changed = plain(num_nextn_predict_layers=0), plain(num_nextn_predict_layers=0)
    judged(reference)
    mine(changed)
    convert(changed.write(tmp_path / "model"), tmp_path / "model.gguf", "F32", *options)
    agree(engine(tmp_path / "model.gguf"), Transformers(reference.write(tmp_path / "reference")))


def test_prediction_that_shares_its_embeddings_loads(engine: Callable[..., Engine], tmp_path: Path) -> None:
    changed, reference = plain("glm-lite"), plain("glm-lite", num_nextn_predict_layers=0)
    CASES["B1 GLM"].model(changed)
    convert(changed.write(tmp_path / "model"), tmp_path / "model.gguf", "F32")
    agree(engine(tmp_path / "model.gguf"), Transformers(reference.write(tmp_path / "reference")))


def agree(engine: Engine, reference: Transformers) -> None:
    for prompt in prompts(reference.vocabulary, LENGTHS):
        expected = reference.next_logprobs(prompt)
        tokens, found = engine.next_logprobs(prompt, min(TOKENS, reference.vocabulary))
        assert largest_difference(tokens, found, expected) <= LIMIT
