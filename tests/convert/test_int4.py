"""A packed INT4 checkpoint, Kimi-K2-Thinking's form: its experts become Q4_0 without loss, or any other type."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

from tests.support import hub
from tests.support.command import convert, gguf_mla
from tests.support.damage import add_tensors, remove_tensor, shard_of, write_value
from tests.support.judges import decoded_weights
from tests.support.matrices import write_imatrix

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.judges import Engine

SMALL: dict[str, Any] = {"num_hidden_layers": 2, "n_routed_experts": 4, "num_experts_per_tok": 2}
EXPERTS = "blk.1.ffn_{}_exps.weight"
ROUGH = "model.layers.1.mlp.experts.0.gate_proj.weight"  # with values that no float16 holds
Q4_0 = gguf.GGMLQuantizationType.Q4_0


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.write(tmp_path_factory.mktemp("kimi") / "model", "kimi-int4", shard_bytes=1_000_000, **SMALL)


@pytest.fixture(scope="module")
def truth(kimi: Path) -> dict[str, np.ndarray]:
    """Every tensor as torch decodes it, float32."""
    return {name: np.asarray(weight) for name, weight in decoded_weights(kimi, SMALL["num_hidden_layers"]).items()}


def plan(checkpoint: Path, *options: Any) -> dict[str, dict[str, Any]]:
    answer = gguf_mla("convert", checkpoint, "out.gguf", "--dry-run", "--json", *options)
    assert answer.status == 0, answer.output
    return {tensor["name"]: tensor for tensor in json.loads(answer.output)["outputs"][0]["plan"]["tensors"]}


def read(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def assert_experts_are_exact(tensors: dict[str, Any], truth: dict[str, np.ndarray]) -> None:
    for part in ("gate", "up", "down"):
        tensor = tensors[EXPERTS.format(part)]
        assert tensor.tensor_type == Q4_0
        decoded = gguf.quants.dequantize(np.asarray(tensor.data), Q4_0)
        for expert, values in enumerate(decoded):
            name = f"model.layers.1.mlp.experts.{expert}.{part}_proj.weight"
            first = 5 if name == ROUGH else 0  # behind the rows that vanish in float16, see below
            assert np.array_equal(values[first:], truth[name][first:]), name


@pytest.mark.parametrize(
    ("kind", "others"),
    [("auto", {"BF16", "F32"}), ("Q4_0", {"Q4_0", "Q6_K", "F32"}), ("MLA-Q4_0", {"Q8_0", "F32"}), ("COPY", None)],
)
def test_experts_as_q4_0_are_exact(
    kind: str, others: set[str] | None, kimi: Path, truth: dict[str, np.ndarray], tmp_path: Path
) -> None:
    if others is None:
        answer = gguf_mla("convert", kimi, tmp_path / "out.gguf", "--type", kind)
        assert answer.status == 2
        assert "--type auto" in answer.output
        return
    convert(kimi, tmp_path / "out.gguf", kind)
    tensors = read(tmp_path / "out.gguf")
    assert_experts_are_exact(tensors, truth)
    assert {t.tensor_type.name for name, t in tensors.items() if "_exps" not in name} == others
    assert gguf.GGUFReader(tmp_path / "out.gguf").fields["general.file_type"].contents() == 2


def test_auto_loses_nothing_at_all(kimi: Path, truth: dict[str, np.ndarray], tmp_path: Path) -> None:
    convert(kimi, tmp_path / "out.gguf")
    tensors = read(tmp_path / "out.gguf")
    embeddings = tensors["token_embd.weight"]
    decoded = gguf.quants.dequantize(np.asarray(embeddings.data), embeddings.tensor_type)
    assert np.array_equal(decoded, truth["model.embed_tokens.weight"])
    shared = tensors["blk.1.ffn_up_shexp.weight"]
    decoded = gguf.quants.dequantize(np.asarray(shared.data), shared.tensor_type)
    assert np.array_equal(decoded, truth["model.layers.1.mlp.shared_experts.up_proj.weight"])


def test_auto_is_named_after_what_it_keeps(kimi: Path, tmp_path: Path) -> None:
    answer = gguf_mla("convert", kimi, tmp_path)
    assert answer.status == 0, answer.output
    assert [path.name for path in tmp_path.iterdir()] == ["model-Q4_0-BF16.gguf"]


def test_what_float16_does_not_hold_is_told(kimi: Path, tmp_path: Path) -> None:
    answer = gguf_mla("convert", kimi, tmp_path / "out.gguf")
    [said] = re.findall("warning: .* blocks of 32 weights .*", answer.output)
    assert said.startswith("warning: 16 blocks of 32 weights in 1 tensors")  # two rows of 256
    assert ROUGH in said
    told = json.loads(gguf_mla("convert", kimi, tmp_path / "2.gguf", "--json", "--quiet").output.splitlines()[-1])
    assert said.removeprefix("warning: ") in told["warnings"]


def test_float32_is_every_value_as_it_is(kimi: Path, truth: dict[str, np.ndarray], tmp_path: Path) -> None:
    convert(kimi, tmp_path / "out.gguf", "F32")
    tensors = read(tmp_path / "out.gguf")
    for part in ("gate", "up", "down"):
        for expert, values in enumerate(tensors[EXPERTS.format(part)].data):
            assert np.array_equal(values, truth[f"model.layers.1.mlp.experts.{expert}.{part}_proj.weight"])


def test_another_type_is_what_quantizing_the_bf16_file_gives(kimi: Path, tmp_path: Path) -> None:
    convert(kimi, tmp_path / "direct.gguf", "Q4_K_M")
    convert(kimi, tmp_path / "bf16.gguf", "BF16")
    assert gguf_mla("quantize", tmp_path / "bf16.gguf", tmp_path / "two.gguf", "Q4_K_M", "--quiet").status == 0
    one, two = read(tmp_path / "direct.gguf"), read(tmp_path / "two.gguf")
    assert all(np.array_equal(one[name].data, two[name].data) for name in one)


def test_several_files_from_one_reading(kimi: Path, tmp_path: Path) -> None:
    types = ("auto", "MLA-Q4_0", "Q8_0")
    options = [word for kind in types for word in ("--type", kind)]
    assert gguf_mla("convert", kimi, tmp_path / "all-{type}.gguf", *options, "--quiet").status == 0
    for kind, name in zip(types, ("Q4_0-BF16", "MLA-Q4_0", "Q8_0"), strict=True):
        convert(kimi, tmp_path / "alone.gguf", kind, "--overwrite")
        assert (tmp_path / f"all-{name}.gguf").read_bytes() == (tmp_path / "alone.gguf").read_bytes()


def test_a_wanted_size_buys_what_is_there_before_anything_else(kimi: Path) -> None:
    found = plan(kimi, "--target-bpw", 9)
    assert {found[EXPERTS.format(part)]["type"] for part in ("gate", "up", "down")} == {"Q4_0"}


def test_an_option_beats_what_is_stored(kimi: Path) -> None:
    found = plan(kimi, "--tensor-type", "up_exps=Q8_0", "--tensor-type", "attn_output=Q6_K")
    kinds = {
        name: found[name]["type"] for name in (EXPERTS.format("up"), EXPERTS.format("gate"), "blk.0.attn_output.weight")
    }
    assert list(kinds.values()) == ["Q8_0", "Q4_0", "Q6_K"]
    assert found[EXPERTS.format("gate")]["reason"] == "as stored"


def test_importance_does_not_touch_what_is_stored(tmp_path: Path) -> None:
    checkpoint = hub.write(
        tmp_path / "model", "kimi-int4", **{**SMALL, "num_hidden_layers": 8}, first_k_dense_replace=0
    )
    entry = np.ones((4, 256), np.float32), np.ones(4, np.float32)
    write_imatrix(
        tmp_path / "m.gguf", {"blk.0.ffn_down_exps.weight": entry}, datasets=[], chunk_count=1, chunk_size=512
    )
    options = ("--type", "Q4_0", "--imatrix", tmp_path / "m.gguf")
    assert plan(checkpoint, *options)["blk.0.ffn_down_exps.weight"]["type"] == "Q4_0"
    # llama-quantize's rule, which the file type would follow otherwise
    assert plan(checkpoint, *options, "--compat", "llama.cpp")["blk.0.ffn_down_exps.weight"]["type"] == "Q4_1"


def test_the_text_of_a_model_that_sees_is_the_same_file(kimi: Path, tmp_path: Path) -> None:
    outer = hub.wrapped(kimi, tmp_path / "model", "KimiK25ForConditionalGeneration")
    convert(kimi, tmp_path / "text.gguf")
    answer = convert(outer, tmp_path / "outer.gguf")
    assert (tmp_path / "text.gguf").read_bytes() == (tmp_path / "outer.gguf").read_bytes()
    assert "16 blocks of 32 weights" in answer.output
    answer = gguf_mla("convert", outer, tmp_path / "x.gguf", "--dry-run")
    assert "dropped: vision_tower.encoder.blocks.0.wqkv.weight and 1 more (vision, which needs an mmproj file)" in (
        answer.output
    )
    assert gguf_mla("verify", outer, tmp_path / "outer.gguf", "--quiet").status == 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove_tensor(f"{ROUGH}_scale"), "its weight_scale is missing"),
        (remove_tensor(f"{ROUGH}_packed"), "its weight_packed is missing"),
        (write_value(f"{ROUGH}_scale", 5, b"\xc0\x7f"), "NaN or Inf at row 0, group 5"),
        (add_tensors(f"{ROUGH}_zero_point"), "_zero_point has an unknown type"),
        (lambda d: shard_of(d, f"{ROUGH}_packed").write_bytes(b""), "0 bytes"),
    ],
)
def test_damage_is_a_sentence_and_leaves_nothing(damage: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    checkpoint = hub.write(tmp_path / "model", "kimi-int4", shard_bytes=1_000_000, **SMALL)
    damage(checkpoint)
    answer = gguf_mla("convert", checkpoint, tmp_path / "out.gguf", "--quiet")
    assert answer.status == 2
    assert words in answer.output
    assert not list(tmp_path.glob("out.gguf*"))


@pytest.mark.engine
@pytest.mark.usefixtures("judges")
def test_verify_and_an_engine_that_is_told_the_betas_agree(kimi: Path, tmp_path: Path) -> None:
    assert "run it with --yarn-beta-fast 1." in convert(kimi, tmp_path / "out.gguf", "F32").output
    options = ("--context", 128, "--chunks", 1, "--engine", "llama.cpp", "--quiet")
    answer = gguf_mla("verify", kimi, tmp_path / "out.gguf", *options)
    assert answer.status == 0, answer.output


@pytest.mark.engine
def test_an_engine_runs_the_exact_file_nearly_as_the_float32_one(engine: Callable[..., Engine], tmp_path: Path) -> None:
    checkpoint = hub.write(tmp_path / "model", "kimi-int4", tame=True, **SMALL)
    logprobs = []
    for kind in ("F32", "auto"):
        convert(checkpoint, tmp_path / f"{kind}.gguf", kind)
        tokens, values = engine(tmp_path / f"{kind}.gguf").next_logprobs([0, *range(300, 340)], 2048)
        logprobs.append(values[np.argsort(tokens)])
    exact, found = logprobs
    # For a Q4_0 matrix llama.cpp rounds the activations to 8 bits, for a BF16 one to BF16: 1.2e-4 measured
    assert 0 < np.sum(np.exp(exact) * (exact - found)) < 1e-3
