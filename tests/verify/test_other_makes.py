"""Files of every kind, and of other makes than today's converter: what an engine computes from them decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support import hub
from tests.support.command import convert
from tests.support.replant import KINDS, array, u32
from tests.verify.sides import Side, first, structure
from verify.findings import Grade
from verify.job import Request, prove

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.replant import Plant

ARCH = "deepseek2."
WRONG, DIFFERS = Grade.WRONG, Grade.DIFFERS

KINDS_OF_MODELS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "v2": ("v2", {}, ()),
    "v2lite": ("v2lite", {}, ()),
    "v3": ("v3", {}, ()),
    "v3-tied": ("v3-tied", {}, ()),
    "kimi": ("kimi", {}, ()),
    "v32": ("v32", {}, ()),
    "v32-light": ("v32", {}, ("--light",)),
    "v32-no-mtp": ("v32", {}, ("--no-mtp",)),
    "glm-lite": ("glm-lite", {}, ()),
    "glm-lite-no-mtp": ("glm-lite", {}, ("--no-mtp",)),
    "glm-dsa": ("glm-dsa", {"num_hidden_layers": 3, "indexer_types": ["full", "shared", "full"]}, ()),
}
SMALL = {"num_hidden_layers": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "hidden_size": 64, "q_lora_rank": 64,
         "moe_intermediate_size": 32, "intermediate_size": 64, "kv_lora_rank": 64}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Side]:
    directory, made = tmp_path_factory.mktemp("models"), {}

    def model(name: str) -> Side:
        if name not in made:
            kind, options, more = KINDS_OF_MODELS[name]
            checkpoint = directory / f"{name}-checkpoint"
            hub.write(checkpoint, kind, **{**SMALL, **options})
            convert(checkpoint, directory / f"{name}.gguf", "F16", *more)
            made[name] = Side(checkpoint, directory / f"{name}.gguf")
        return made[name]

    return model


@pytest.mark.parametrize("name", KINDS_OF_MODELS)
def test_a_right_file_of_every_kind_is_right(name: str, models: Callable[[str], Side]) -> None:
    side = models(name)
    for reference in (side.checkpoint, side.gguf):
        proof = structure(reference, side.gguf)
        assert proof.findings == [], [finding.sentence for finding in proof.findings]


def test_types_of_indexers_are_taken_from_the_tensors(models: Callable[[str], Side], tmp_path: Path) -> None:
    side = models("glm-dsa")
    key = "glm-dsa.attention.indexer.types"
    proof = prove(Request(side.checkpoint, side.plant.write(tmp_path / "x.gguf", {key: None}), level="weights"))
    assert (proof.grade, [finding.subject for finding in proof.findings]) == (DIFFERS, [key])
    wrong = side.plant.write(tmp_path / "y.gguf", {key: array([True, True, True], KINDS.BOOL)})
    assert (first(structure(side.checkpoint, wrong)).subject, structure(side.gguf, wrong).grade) == (key, WRONG)


def test_groups_of_which_all_are_chosen_from_need_no_key(models: Callable[[str], Side], tmp_path: Path) -> None:
    side = models("kimi")  # one group
    keys = {ARCH + "expert_group_count": None, ARCH + "expert_group_used_count": None}
    assert structure(side.checkpoint, side.plant.write(tmp_path / "x.gguf", keys)).grade is DIFFERS
    four = {ARCH + "expert_group_count": u32(4), ARCH + "expert_group_used_count": u32(4)}
    assert structure(side.checkpoint, side.plant.write(tmp_path / "y.gguf", four)).grade is DIFFERS
    limited = {ARCH + "expert_group_count": u32(4), ARCH + "expert_group_used_count": u32(2)}
    assert structure(side.checkpoint, side.plant.write(tmp_path / "z.gguf", limited)).grade is WRONG
    limits = models("v3")  # two of four groups: without the keys llama.cpp lets all experts be chosen
    assert structure(limits.checkpoint, limits.plant.write(tmp_path / "v.gguf", keys)).grade is WRONG


@pytest.mark.parametrize(("name", "grade"), [("glm-dsa", DIFFERS), ("glm-lite", WRONG)])
def test_a_missing_gate_is_what_llama_cpp_takes_for_it(
    name: str, grade: Grade, models: Callable[[str], Side], tmp_path: Path
) -> None:
    side = models(name)
    architecture = side.plant.keys["general.architecture"].value
    key = f"{architecture}.expert_gating_func"
    proof = structure(side.checkpoint, side.plant.write(tmp_path / "x.gguf", {key: None}))
    assert (proof.grade, first(proof).subject) == (grade, key)


def fused(plant: Plant, layer: int) -> dict[str, Any]:
    gate, up = (plant.tensors[f"blk.{layer}.ffn_{half}_exps.weight"] for half in ("gate", "up"))
    gone: dict[str, Any] = dict.fromkeys(f"blk.{layer}.ffn_{half}_exps.weight" for half in ("gate", "up"))
    return gone | {f"blk.{layer}.ffn_gate_up_exps.weight": (np.concatenate([gate[0], up[0]], axis=1), gate[1])}


def test_fused_experts_are_compared_as_two(models: Callable[[str], Side], tmp_path: Path) -> None:
    side = models("v3")
    joined, name = fused(side.plant, 1), "blk.1.ffn_gate_up_exps.weight"
    right = side.plant.write(tmp_path / "fused.gguf", tensors=joined)
    for reference in (side.checkpoint, side.gguf):
        proof = prove(Request(reference, right, level="weights"))
        assert proof.grade is Grade.RIGHT, [finding.sentence for finding in proof.findings]
        assert [tensor.part for tensor in proof.tensors if tensor.name == name] == ["gate", "up"]
    values, kind = joined[name]
    swapped = side.plant.write(tmp_path / "x.gguf", tensors={**joined, name: (np.roll(values, 32, axis=1), kind)})
    assert first(prove(Request(side.checkpoint, swapped, level="weights"))).subject == name
    sparse = models("v32")
    unread = sparse.plant.write(tmp_path / "y.gguf", tensors=fused(sparse.plant, 1))
    assert [finding.subject for finding in structure(sparse.checkpoint, unread).findings] == [name]


OWN = ("2.embed_tokens.weight", "shared_head.head.weight")
PREDICTS = ("blk.2.nextn.embed_tokens.weight", "blk.2.nextn.shared_head_head.weight")
INDEXER = "model.layers.2.self_attn.indexer."


def checkpoint_without(directory: Path, monkeypatch: pytest.MonkeyPatch, *parts: str) -> Path:
    """A V3.2 checkpoint without tensors whose names hold one of these."""
    weights = hub.weights
    monkeypatch.setattr(
        hub,
        "weights",
        lambda *args, **options: (each for each in weights(*args, **options) if not any(p in each.name for p in parts)),
    )
    hub.write(directory, "v32", **SMALL)
    monkeypatch.undo()
    return directory


def test_a_prediction_layer_without_embeddings_of_its_own_takes_the_models(
    models: Callable[[str], Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = models("v32")
    shared = side.plant.write(tmp_path / "shared.gguf", tensors=dict.fromkeys(PREDICTS))
    (tmp_path / "ids").write_text(" ".join(map(str, range(100, 140))))
    proof = prove(Request(side.checkpoint, shared, level="logits", tokens=tmp_path / "ids", chunks=1))
    assert (proof.grade, [finding.subject for finding in proof.findings]) == (DIFFERS, [*PREDICTS, "the predictions"])
    assert set(PREDICTS) <= {tensor.name for tensor in proof.tensors}
    reference = checkpoint_without(tmp_path / "checkpoint", monkeypatch, *OWN)
    for candidate in (shared, side.gguf):
        assert prove(Request(reference, candidate, level="weights")).grade is Grade.RIGHT
    moved = side.plant.tensors[PREDICTS[0]]
    other = side.plant.write(tmp_path / "x.gguf", tensors={PREDICTS[0]: (np.roll(moved[0], 1, axis=0), moved[1])})
    assert first(prove(Request(reference, other, level="weights"))).subject == PREDICTS[0]


def test_a_prediction_layer_without_an_indexer_attends_to_all_tokens(
    models: Callable[[str], Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = models("v32")
    gone = dict.fromkeys(name for name in side.plant.tensors if name.startswith("blk.2.indexer."))
    bare = side.plant.write(tmp_path / "bare.gguf", tensors=gone)
    assert {finding.subject for finding in structure(side.checkpoint, bare).findings} == set(gone)
    reference = checkpoint_without(tmp_path / "checkpoint", monkeypatch, INDEXER)
    (tmp_path / "ids").write_text(" ".join(map(str, range(100, 140))))
    proof = prove(Request(reference, bare, level="logits", tokens=tmp_path / "ids", chunks=1))
    assert proof.grade is Grade.RIGHT, [finding.sentence for finding in proof.findings]
