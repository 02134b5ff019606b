"""The rehearsal: made-up checkpoints have the shapes they should, and the tables say what was measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla.bench import rehearsal, synthetic
from gguf_mla.checkpoint import open_checkpoint
from tests.support import hub
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from pathlib import Path

V3 = synthetic.SHAPES["deepseek-v3"]
SMALL = V3 | {
    "hidden_size": 512, "intermediate_size": 1024, "moe_intermediate_size": 256, "num_attention_heads": 4,
    "num_hidden_layers": 5, "q_lora_rank": 256, "vocab_size": 8192,
}  # fmt: skip


def test_the_whole_is_the_published_checkpoint() -> None:
    tensors = list(synthetic.tensors(V3))
    assert synthetic.parameters(V3) == 671_026_419_200
    # Three dense layers, 58 with experts and one more for multi-token prediction with 6 own; embedding, norm, head.
    assert len(tensors) == 3 * 20 + 59 * (22 + 256 * 6) + 6 + 3
    assert sum(tensor.nbytes for tensor in tensors) == pytest.approx(689e9, rel=1e-3)


def test_names_types_and_shapes_are_those_of_the_tests_own_checkpoints(tmp_path: Path) -> None:
    config = SMALL | {"num_hidden_layers": 4, "n_routed_experts": 8}
    synthetic.write(tmp_path / "ours", config, synthetic.hollow)
    changes = {key: value for key, value in config.items() if key not in ("vocab_size", "quantization_config")}
    tests = hub.config_of("v3fp8", "bundled", **changes) | {"vocab_size": 8192}
    expected = {s.name: (s.dtype, s.shape) for w in hub.weights(tests) for s in hub.stored(w, "fp8", 0)}
    assert {t.name: (t.dtype, t.shape) for t in synthetic.tensors(config)} == expected


@pytest.mark.parametrize("parts", [16, 64, 128])
def test_a_fraction_is_about_that_and_as_wide(parts: int) -> None:
    small = synthetic.reduced(V3, 1 / parts)
    assert synthetic.parameters(small) == pytest.approx(synthetic.parameters(V3) / parts, rel=0.1)
    assert small["hidden_size"] == V3["hidden_size"]


def test_random_weights_are_finite_and_spread(tmp_path: Path) -> None:
    synthetic.write(tmp_path / "model", synthetic.reduced(SMALL, 0.5), synthetic.random_weights())
    tensors = open_checkpoint(tmp_path / "model").tensors
    for name in ("model.layers.1.mlp.experts.3.up_proj.weight", "model.layers.0.self_attn.o_proj.weight"):
        values = tensors[name].read(0, math.prod(tensors[name].shape[:-1]))
        assert np.isfinite(values).all()
        assert np.unique(values).size > 100


def test_the_rehearsal_of_a_small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(synthetic.SHAPES, "small", SMALL)
    [done] = rehearsal.rehearse(tmp_path, "small", 0.5, ("Q8_0",), 2)
    assert done.parameters == synthetic.parameters(SMALL)
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
