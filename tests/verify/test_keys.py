"""Every metadata key is explained: faults planted by gguf-py are found and blamed on their key, with their grade."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

from gguf_mla.forward.model import MlaModel
from tests.support import hub
from tests.support.command import convert, gguf_mla
from tests.support.legacy import write_variant
from tests.support.replant import KINDS, Plant, Typed, array, boolean, f32, string, u32
from tests.verify.sides import Side, first, structure
from verify.findings import Grade
from verify.job import Request, prove

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ARCH, TOKENS = "deepseek2.", "tokenizer.ggml."
WRONG, DIFFERS = Grade.WRONG, Grade.DIFFERS


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Side:
    out = tmp_path_factory.mktemp("keys") / "tiny.gguf"
    convert(hub.BUNDLED, out, "Q4_0")
    return Side(hub.BUNDLED, out)


def changed(plant: Plant, key: str, how: Callable[[Any], Any]) -> Typed:
    typed = plant.keys[key]
    return Typed(how(typed.value), typed.kind, typed.item)


def types(number: int, kind: int) -> Callable[[list[int]], list[int]]:
    return lambda listed: [kind if place == number else found for place, found in enumerate(listed)]


# Key, what it becomes, grade against the checkpoint, grade against the right GGUF file.
FAULTS: list[tuple[str, Typed | Callable[[Any], Any] | None, Grade, Grade]] = [
    # the outsider's table
    (TOKENS + "pre", None, WRONG, WRONG),
    (TOKENS + "pre", string("llama-bpe"), WRONG, WRONG),
    (TOKENS + "pre", string("deepseek-llm"), WRONG, WRONG),
    (TOKENS + "pre", string("qwen2"), WRONG, WRONG),
    (TOKENS + "pre", string("default"), WRONG, WRONG),
    (TOKENS + "pre", string("a-name-of-mine"), WRONG, WRONG),
    (TOKENS + "pre", u32(3), WRONG, WRONG),
    (TOKENS + "model", string("llama"), WRONG, WRONG),
    (TOKENS + "model", None, WRONG, WRONG),
    (TOKENS + "token_type", types(1, 1), WRONG, WRONG),
    (TOKENS + "token_type", types(700, 3), WRONG, WRONG),
    (TOKENS + "token_type", lambda listed: [1] * len(listed), WRONG, WRONG),
    (TOKENS + "token_type", None, WRONG, WRONG),
    (TOKENS + "padding_token_id", u32(7), DIFFERS, DIFFERS),
    (TOKENS + "padding_token_id", None, DIFFERS, DIFFERS),
    ("tokenizer.chat_template", string("{{ messages }}"), WRONG, WRONG),
    ("tokenizer.chat_template", None, WRONG, WRONG),
    (ARCH + "context_length", u32(131072), WRONG, WRONG),
    (ARCH + "context_length", None, WRONG, WRONG),
    (ARCH + "vocab_size", u32(4096), DIFFERS, DIFFERS),
    (ARCH + "vocab_size", None, DIFFERS, DIFFERS),
    ("general.file_type", u32(15), DIFFERS, DIFFERS),
    (ARCH + "rope.scaling.attn_factor", f32(2.0), WRONG, WRONG),
    # what llama.cpp honours in any model
    (ARCH + "rope.scale_linear", f32(4.0), WRONG, WRONG),
    (ARCH + "attention.causal", boolean(False), WRONG, WRONG),
    (ARCH + "attention.temperature_scale", f32(0.1), WRONG, WRONG),
    (ARCH + "attention.temperature_length", u32(8192), WRONG, WRONG),
    (ARCH + "embedding_length_out", u32(128), WRONG, WRONG),
    (ARCH + "pooling_type", u32(1), WRONG, WRONG),
    ("general.tensor_extra.name", array(["output.weight"], KINDS.STRING), WRONG, WRONG),
    (TOKENS + "suppress_tokens", array([5], KINDS.INT32), WRONG, WRONG),
    (TOKENS + "add_sep_token", boolean(True), WRONG, WRONG),
    (TOKENS + "add_space_prefix", boolean(True), WRONG, WRONG),
    (TOKENS + "add_eos_token", boolean(True), WRONG, WRONG),
    (TOKENS + "add_bos_token", None, WRONG, WRONG),
    (TOKENS + "bos_token_id", None, WRONG, WRONG),
    (TOKENS + "eos_token_id", None, WRONG, WRONG),
    (TOKENS + "eot_token_id", u32(700), WRONG, WRONG),
    (TOKENS + "eom_token_id", u32(2047), WRONG, WRONG),
    (TOKENS + "fim_pre_token_id", u32(300), WRONG, WRONG),
    ("tokenizer.chat_template.tool_use", string("{{ tools }}"), WRONG, WRONG),
    ("general.sampling.temp", f32(1.9), WRONG, WRONG),
    ("general.sampling.top_k", Typed(3, KINDS.INT32), WRONG, WRONG),
    ("general.sampling.temp", None, DIFFERS, DIFFERS),
    # the model
    (ARCH + "attention.kv_lora_rank", u32(256), WRONG, WRONG),
    (ARCH + "attention.q_lora_rank", None, WRONG, WRONG),
    (ARCH + "attention.key_length", None, WRONG, WRONG),
    (ARCH + "attention.head_count_kv", None, WRONG, WRONG),
    (ARCH + "expert_shared_count", u32(2), WRONG, WRONG),
    (ARCH + "expert_group_count", None, WRONG, WRONG),
    (ARCH + "expert_group_used_count", u32(4), WRONG, WRONG),
    (ARCH + "expert_weights_norm", None, WRONG, WRONG),
    (ARCH + "expert_weights_norm", u32(1), WRONG, WRONG),
    (ARCH + "expert_gating_func", None, WRONG, WRONG),
    (ARCH + "expert_weights_scale", None, WRONG, WRONG),
    (ARCH + "rope.scaling.type", string("linear"), WRONG, WRONG),
    (ARCH + "rope.scaling.yarn_log_multiplier", None, WRONG, WRONG),
    (ARCH + "rope.scaling.yarn_beta_fast", f32(1.0), WRONG, WRONG),
    (ARCH + "rope.dimension_count", None, WRONG, WRONG),
    (ARCH + "rope.freq_base", f32(10001.0), WRONG, WRONG),
    (ARCH + "leading_dense_block_count", None, WRONG, WRONG),
    # what is known to do nothing, and what nobody knows
    (ARCH + "logit_scale", f32(4.0), DIFFERS, DIFFERS),
    (ARCH + "final_logit_softcapping", f32(30.0), DIFFERS, DIFFERS),
    (ARCH + "attention.sliding_window", u32(64), DIFFERS, DIFFERS),
    (ARCH + "attention.scale", f32(4.0), DIFFERS, DIFFERS),
    (ARCH + "rope.scaling.yarn_ext_factor", f32(4.0), DIFFERS, DIFFERS),
    (ARCH + "mla_optimized", boolean(True), DIFFERS, DIFFERS),
    (ARCH + "attention.indexer.top_k", u32(64), DIFFERS, DIFFERS),
    (ARCH + "attention.invented_yesterday", u32(64), DIFFERS, DIFFERS),
    ("llama.context_length", u32(64), DIFFERS, DIFFERS),
    ("tokenizer.invented_yesterday", u32(64), DIFFERS, DIFFERS),
    (TOKENS + "scores", array([0.0] * 2048, KINDS.FLOAT32), DIFFERS, DIFFERS),
    (TOKENS + "mask_token_id", u32(9), DIFFERS, DIFFERS),
    ("general.type", string("adapter"), DIFFERS, DIFFERS),
    ("general.quantization_version", u32(3), DIFFERS, DIFFERS),
    # values that do nothing
    (ARCH + "rope.scaling.attn_factor", f32(1.0), Grade.RIGHT, Grade.RIGHT),
    (ARCH + "attention.causal", boolean(True), Grade.RIGHT, Grade.RIGHT),
    (TOKENS + "add_space_prefix", boolean(False), Grade.RIGHT, Grade.RIGHT),
    (ARCH + "nextn_predict_layers", u32(0), Grade.RIGHT, Grade.RIGHT),
    (ARCH + "rope.scaling.yarn_beta_slow", None, Grade.RIGHT, Grade.RIGHT),
    (TOKENS + "pre", string("joyai-llm"), Grade.RIGHT, DIFFERS),
    (TOKENS + "token_type", types(2046, 4), Grade.RIGHT, WRONG),
    ("general.name", string("Another"), Grade.RIGHT, Grade.RIGHT),
    ("quantize.imatrix.file", string("x.dat"), Grade.RIGHT, Grade.RIGHT),
]


def label(fault: Any) -> str:
    key, value, *_ = fault
    said = "missing" if value is None else value.value if isinstance(value, Typed) else "changed"
    return f"{key}={said!s:.24}"


@pytest.mark.parametrize("fault", FAULTS, ids=label)
def test_a_key_is_blamed_with_its_grade(fault: Any, bundled: Side, tmp_path: Path) -> None:
    key, value, *grades = fault
    if callable(value):
        value = changed(bundled.plant, key, value)
    wrong = bundled.plant.write(tmp_path / "wrong.gguf", {key: value})
    for reference, grade in zip((bundled.checkpoint, bundled.gguf), grades, strict=True):
        proof = structure(reference, wrong)
        assert proof.grade is grade, [finding.sentence for finding in proof.findings]
        blamed = {finding.subject for finding in proof.findings if finding.grade is grade}
        assert blamed == (set() if grade is Grade.RIGHT else {key})


def test_no_message_uses_words_of_ours(bundled: Side, tmp_path: Path) -> None:
    keys = {
        ARCH + "rope.freq_base": f32(500.0),
        ARCH + "rope.scaling.yarn_log_multiplier": f32(1.0),
        ARCH + "attention.key_length_mla": u32(576),
        ARCH + "expert_gating_func": u32(1),
    }
    sentences = [
        finding.sentence for finding in structure(hub.BUNDLED, bundled.plant.write(tmp_path / "x", keys)).findings
    ]
    assert sentences == [
        "deepseek2.expert_gating_func: is wrong (expected 2, found 1).",
        "deepseek2.rope.freq_base: is wrong (expected 10000, found 500).",
        "deepseek2.rope.scaling.yarn_log_multiplier: is wrong (expected 0.1, found 1).",
        "deepseek2.attention.key_length_mla: is wrong (expected 192, found 576).",
    ]
    fields = {field.name for field in dataclasses.fields(MlaModel)} - {"layers", "heads", "vocab", "value", "rope"}
    assert not fields & {word for sentence in sentences for word in sentence.replace(":", " ").split()}


def test_a_key_that_cannot_be_read_is_named(bundled: Side, tmp_path: Path) -> None:
    [finding] = structure(
        hub.BUNDLED, bundled.plant.write(tmp_path / "x", {ARCH + "expert_count": string("x")})
    ).findings
    assert finding.subject == ARCH + "expert_count"


def test_bytes_after_the_end_are_said(bundled: Side, tmp_path: Path) -> None:
    longer = tmp_path / "longer.gguf"
    longer.write_bytes(bundled.gguf.read_bytes() + bytes(1000))
    proof = structure(hub.BUNDLED, longer)
    assert (proof.grade, [finding.subject for finding in proof.findings]) == (DIFFERS, ["longer.gguf"])
    assert gguf_mla("verify", hub.BUNDLED, longer, "--level", "structure", "--strict").status == 1


@pytest.mark.parametrize("kept", [100, 20_000, 4_000_000], ids=["in the head", "in the tokens", "in the body"])
def test_a_file_that_was_cut_off_is_wrong_wherever_it_ends(kept: int, bundled: Side, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(bundled.gguf.read_bytes()[:kept])
    assert first(structure(hub.BUNDLED, short)).grade is WRONG
    assert gguf_mla("verify", hub.BUNDLED, short).status == 1


def test_a_leftover_tensor_is_found(bundled: Side, tmp_path: Path) -> None:
    name = "blk.1.attn_kv_b.weight"
    more = bundled.plant.write(tmp_path / "more.gguf", tensors={name: bundled.plant.tensors["blk.1.attn_q_b.weight"]})
    for reference in (hub.BUNDLED, bundled.gguf):
        found = structure(reference, more).findings
        assert [(finding.subject, finding.grade) for finding in found] == [(name, WRONG)]


def test_a_tensor_that_engines_compute_is_said(bundled: Side, tmp_path: Path) -> None:
    more = {"rope_freqs.weight": (np.ones(32, np.float32), gguf.GGMLQuantizationType.F32)}
    candidate = bundled.plant.write(tmp_path / "more.gguf", tensors=more)
    proof = prove(Request(hub.BUNDLED, candidate, level="weights"))
    assert (proof.grade, [finding.subject for finding in proof.findings]) == (DIFFERS, ["rope_freqs.weight"])
    assert proof.tensors


# ------------------------------------------------------------------------------------------------- right files


OLDER = (
    # what earlier converters wrote less of, and to no one's harm
    ((TOKENS + "padding_token_id", "general.type", ARCH + "vocab_size", "general.sampling.temp"), DIFFERS),
    ((ARCH + "rope.scaling.yarn_beta_fast", ARCH + "rope.scaling.yarn_beta_slow", "general.size_label"), Grade.RIGHT),
    (("general.quantization_version", "general.file_type", TOKENS + "add_eos_token"), Grade.RIGHT),
)


@pytest.mark.parametrize(("missing", "grade"), OLDER)
def test_older_metadata_are_not_called_wrong(
    missing: tuple[str, ...], grade: Grade, bundled: Side, tmp_path: Path
) -> None:
    candidate = bundled.plant.write(tmp_path / "older.gguf", dict.fromkeys(missing))
    for reference in (hub.BUNDLED, bundled.gguf):
        assert structure(reference, candidate).grade in (grade, DIFFERS)


@pytest.mark.parametrize("left_out", [(), (ARCH + "vocab_size",)])
def test_a_legacy_file_is_right(left_out: tuple[str, ...], bundled: Side, tmp_path: Path) -> None:
    convert(hub.BUNDLED, tmp_path / "f32.gguf", "F32")
    legacy = write_variant(tmp_path / "f32.gguf", tmp_path / "legacy.gguf", "legacy", left_out)
    for reference in (hub.BUNDLED, tmp_path / "f32.gguf", bundled.gguf):
        assert structure(reference, legacy).right
    assert structure(legacy, bundled.gguf).right
    wrong = Plant(legacy).write(tmp_path / "wrong.gguf", {ARCH + "attention.key_length_mla": u32(192)})
    assert first(structure(hub.BUNDLED, wrong)).subject == ARCH + "attention.key_length_mla"
