"""The rehearsal: made-up checkpoints have the shapes they should, and the tables say what was measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla.bench import rehearsal
from gguf_mla.sources.checkpoint import open_checkpoint
from gguf_mla.synthetic import checkpoints, shapes
from tests.support import hub
from tests.support.command import gguf_mla
from tests.support.kinds import KINDS as KINDS_OF_TESTS

if TYPE_CHECKING:
    from pathlib import Path

UNREAD = {
    "aux_loss_alpha", "bos_token_id", "eos_token_id", "ep_size", "pretraining_tp", "seq_aux", "transformers_version",
    "num_nextn_predict_layers",
}  # fmt: skip
V3 = shapes.SHAPES["deepseek-v3"]
SMALL = V3 | {
    "hidden_size": 512, "intermediate_size": 1024, "moe_intermediate_size": 256, "num_attention_heads": 4,
    "num_hidden_layers": 5, "q_lora_rank": 256, "vocab_size": 8192,
}  # fmt: skip


def test_the_whole_is_the_published_checkpoint() -> None:
    tensors = list(checkpoints.tensors(V3))
    assert shapes.parameters(V3) == 671_026_419_200
    # Three dense layers, 58 with experts and one more for multi-token prediction with 6 own; embedding, norm, head.
    assert len(tensors) == 3 * 20 + 59 * (22 + 256 * 6) + 6 + 3
    assert sum(tensor.nbytes for tensor in tensors) == pytest.approx(689e9, rel=1e-3)


KINDS = {
    "v2-lite": "v2lite",
    "v2": "v2",
    "v3": "v3fp8",
    "v32": "v32fp8",
    "glm-dsa": "glm-dsa",
    "kimi-k2": "kimi-int4",
}


@pytest.mark.parametrize("family", KINDS)
def test_names_types_and_shapes_are_those_of_the_tests_own_checkpoints(family: str) -> None:
    config = shapes.sized(shapes.SHAPES[shapes.FAMILIES[family]], 20_000_000, 2048)
    changes = {key: value for key, value in config.items() if key not in ("vocab_size", "quantization_config")}
    tests = hub.config_of(KINDS[family], "bundled", **changes)
    storage = KINDS_OF_TESTS[KINDS[family]].storage
    expected = {s.name: (s.dtype, s.shape) for w in hub.weights(tests) for s in hub.stored(w, storage, 0)}
    assert {t.name: (t.dtype, t.shape) for t in checkpoints.tensors(config)} == expected
    # what is configured besides is what the tests' own configurations say, which come from the published ones, too
    assert {key for key in tests if key not in config} <= UNREAD


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("deepseek-v2-lite", 15.7e9),
        ("deepseek-v2", 236e9),
        ("deepseek-v3.2", 685e9),
        ("glm-5", 754e9),
        ("kimi-k2-thinking", 1.026e12),
    ],
)
def test_parameters_are_what_is_published(name: str, published: float) -> None:
    assert shapes.parameters(shapes.SHAPES[name]) == pytest.approx(published, rel=3e-3)


@pytest.mark.parametrize("parts", [16, 64, 128])
def test_a_fraction_is_about_that_and_as_wide(parts: int) -> None:
    small = shapes.reduced(V3, 1 / parts)
    assert shapes.parameters(small) == pytest.approx(shapes.parameters(V3) / parts, rel=0.1)
    assert small["hidden_size"] == V3["hidden_size"]


def test_random_weights_are_finite_and_spread(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "model", shapes.reduced(SMALL, 0.5), checkpoints.random_weights())
    tensors = open_checkpoint(tmp_path / "model").tensors
    for name in ("model.layers.1.mlp.experts.3.up_proj.weight", "model.layers.0.self_attn.o_proj.weight"):
        values = tensors[name].read(0, math.prod(tensors[name].shape[:-1]))
        assert np.isfinite(values).all()
        assert np.unique(values).size > 100


def test_the_rehearsal_of_a_small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "small", SMALL)
    [done] = rehearsal.rehearse(tmp_path, "small", 0.5, ("Q8_0",), 2)
    assert done.parameters == shapes.parameters(SMALL)
    assert done.whole_seconds == pytest.approx(done.fraction_seconds * done.parameters / done.fraction_parameters)
    assert done.fraction_peak > 50 << 20
    said = rehearsal.report("small", 2, [done])
    assert "The whole, at these rates:" in said
    assert f"{done.shards} shards" in said


@pytest.mark.parametrize("text", ["0", "2", "-1/2", "1/0", "much"])
def test_a_fraction_that_is_none_is_refused(text: str) -> None:
    answer = gguf_mla("bench", "convert", "--fraction", text)
    assert answer.status == 2
    assert "--fraction cannot be read" in answer.output
