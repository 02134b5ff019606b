"""Mistral-Small-4 as it is published: inside a model that sees, in FP8 with one scale for a matrix, experts stacked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_mla.container.reader import open_gguf
from tests.support import hub, replant
from tests.support.command import convert, gguf_mla
from tests.support.judges import Transformers, largest_difference, prompts
from tests.verify.sides import first, structure
from verify.findings import Grade

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.judges import Engine

SMALL: dict[str, Any] = {"num_hidden_layers": 2, "n_routed_experts": 8, "tame": True}
OUTER = "Mistral3ForConditionalGeneration"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mistral")
    return hub.wrapped(hub.write(directory / "text", "mistral4-fp8", **SMALL), directory / "model", OUTER)


def test_the_text_model_is_converted_and_proven(published: Path, tmp_path: Path) -> None:
    answer = convert(published, tmp_path / "out.gguf", "Q8_0")
    assert "noteworthy" not in answer.output, answer.output
    file = open_gguf(tmp_path / "out.gguf")
    assert file.tensors["blk.1.ffn_gate_up_exps.weight"].shape == (8, 512, 256)
    assert file.tensors["blk.1.ffn_down_exps.weight"].shape == (8, 256, 256)
    text = gguf_mla("convert", published, tmp_path / "x.gguf", "--dry-run").output
    assert "a scale of activations" in text
    assert "vision, which needs an mmproj file" in text
    answer = gguf_mla("verify", published, tmp_path / "out.gguf", "--context", 64, "--chunks", 1, "--quiet")
    assert answer.status == 0, answer.output


def test_gate_and_up_lie_one_after_the_other_for_every_expert(published: Path, tmp_path: Path) -> None:
    convert(published, tmp_path / "out.gguf", "F32")
    found = open_gguf(tmp_path / "out.gguf")["blk.0.ffn_gate_up_exps.weight"].values()
    stored = {w.name: w for w in hub.weights(hub.config_of("mistral4-fp8", "bundled", **SMALL), tame=True)}
    whole = stored["model.layers.0.mlp.experts.gate_up_proj"].values(1234)
    step = np.abs(whole).max(axis=(1, 2), keepdims=True) / 448  # of e4m3 scaled to the largest of an expert
    assert (np.abs(found - whole) <= 0.07 * np.abs(whole) + step).all()


def test_queries_that_do_not_grow_are_found_and_blamed(published: Path, tmp_path: Path) -> None:
    convert(published, tmp_path / "right.gguf", "F32")
    plant = replant.Plant(tmp_path / "right.gguf")
    scale, length = "mistral4.attention.temperature_scale", "mistral4.attention.temperature_length"
    for key, planted in {scale: {scale: None, length: None}, length: {length: replant.u32(64)}}.items():
        wrong = plant.write(tmp_path / "wrong.gguf", planted)
        finding = first(structure(published, wrong))
        assert (finding.subject, finding.grade) == (key, Grade.WRONG)


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # transformers' and torch's own
def test_an_engine_needs_the_keys_that_other_converters_leave_out(
    engine: Callable[..., Engine], tmp_path: Path
) -> None:
    checkpoint = hub.write(tmp_path / "model", "mistral4", num_hidden_layers=1)
    off = ("--override-kv", "mistral4.attention.temperature_scale=float:0")
    convert(checkpoint, tmp_path / "without.gguf", "F32", *off)
    llama, reference = engine(tmp_path / "without.gguf"), Transformers(checkpoint)
    named = ("--set", 'architectures=["MistralLarge3ForCausalLM"]')
    convert(checkpoint, tmp_path / "large.gguf", "F32", *named)  # of the same values, experts in two tensors
    large = engine(tmp_path / "large.gguf")
    differences = []
    for prompt in prompts(reference.vocabulary, (32, 70)):
        tokens, found = llama.next_logprobs(prompt, 256)
        differences.append(largest_difference(tokens, found, expected := reference.next_logprobs(prompt)))
        assert largest_difference(*large.next_logprobs(prompt, 256), expected) <= 2e-4
    assert differences[0] <= 2e-4  # the queries' first growth is at position 32
    assert differences[1] > 1e-2


def test_another_mistral_is_refused_by_name(published: Path, tmp_path: Path) -> None:
    answer = gguf_mla("convert", published, tmp_path / "x.gguf", "--set", "model_type=mistral", "--quiet")
    assert answer.status == 2
    assert "model_type is another model's of the same class" in answer.output


def test_mistrals_own_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{}")
    answer = gguf_mla("convert", tmp_path, tmp_path / "x.gguf", "--quiet")
    assert answer.status == 2
    assert "is in Mistral's own form" in answer.output
