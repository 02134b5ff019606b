"""The size of the key-value cache: llama.cpp's published figures for DeepSeek-V3, and what fits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from gguf_mla.cli.main import main
from gguf_mla.container.values import string, u32
from gguf_mla.container.writer import TensorSpec, lay_out

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
TOKENS = 163840
WEIGHTS = 1 << 20  # bytes of the one tensor
SIZES = {
    "block_count": 61,
    "attention.head_count": 128,
    "attention.head_count_kv": 1,
    "attention.key_length": 576,
    "attention.value_length": 512,
    "attention.key_length_mla": 192,
    "attention.value_length_mla": 128,
    "attention.kv_lora_rank": 512,
    "rope.dimension_count": 64,
}
LEGACY = {"attention.head_count_kv": 128, "attention.key_length": 192, "attention.value_length": 128}
SPARSE = {"block_count": 62, "nextn_predict_layers": 1, "attention.indexer.key_length": 128}


def model(path: Path, architecture: str, sizes: dict[str, int]) -> Path:
    metadata = {"general.architecture": string(architecture)}
    metadata |= {f"{architecture}.{key}": u32(value) for key, value in sizes.items()}
    layout = lay_out(metadata, [TensorSpec("token_embd.weight", (256, 1024), "F32")])
    path.write_bytes(layout.head.ljust(layout.size, b"\0"))
    return path


@pytest.fixture
def v3(tmp_path: Path) -> Path:
    return model(tmp_path / "v3.gguf", "deepseek2", SIZES)


def inspect(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(main, ["inspect", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output


def sizes(*arguments: object) -> dict[tuple[str, str], Any]:
    return {(r["cache"], r["type"]): r for r in json.loads(inspect(*arguments, "--json"))["caches"]}


def test_the_figures_that_llama_cpp_published(v3: Path) -> None:
    found = sizes(v3, "--context", TOKENS)
    assert found["MLA, K only", "F16"]["bytes"] == 10980 * MIB
    assert found["MLA, K and V", "F16"]["bytes"] == 20740 * MIB
    assert found["MLA, K only", "F16"]["saved"] == pytest.approx(0.4706, abs=5e-5)
    assert found["MHA, expanded", "F16"]["bytes"] == 762.5 * 1024 * MIB
    assert found["MLA, K only", "Q8_0"]["bytes"] == TOKENS * 61 * 18 * 34
    assert found["MLA, K only", "Q4_0"]["bytes"] == TOKENS * 61 * 18 * 18
    assert found["MLA, K only", "F16"]["bytes_per_layer"] == 180 * MIB
    shown = inspect(v3, "--context", TOKENS)
    assert all(
        figure in shown for figure in ("10.72 GiB", "20.25 GiB", "762.50 GiB", "180.00 MiB", "47.1 %", "61 layers")
    )


def test_a_legacy_file_is_told_the_same(v3: Path, tmp_path: Path) -> None:
    kept = {key: size for key, size in SIZES.items() if not key.endswith("_mla")}
    old = model(tmp_path / "old.gguf", "deepseek2", kept | LEGACY)
    legacy, mla = (sizes(file, "--context", TOKENS) for file in (old, v3))
    assert {key: record | {"use": ""} for key, record in legacy.items()} == {k: r | {"use": ""} for k, r in mla.items()}
    assert [record["use"] for (_, kind), record in legacy.items() if kind == "F16"] == [
        "this file", "after an upgrade, older engines", "after an upgrade",
    ]  # fmt: skip
    assert [record["use"] for (_, kind), record in mla.items() if kind == "F16"] == [
        "after a downgrade", "this file, older engines", "this file",
    ]  # fmt: skip


def test_the_longest_context_is_compared_with_the_models(tmp_path: Path) -> None:
    file = model(tmp_path / "v3.gguf", "deepseek2", SIZES | {"context_length": 2048})
    assert "all of 2048" in inspect(file, "--fit", "80G")
    assert "of 2048" in inspect(file, "--fit", "8M")
    assert "all of 2048" not in inspect(file, "--fit", "8M")
    assert "working memory is not counted" in inspect(file, "--fit", "8M")
    assert sizes(file, "--fit", "80G")["MLA, K only", "F16"]["model_context"] == 2048


def test_sparse_attention_adds_its_indexer_and_prediction_layers_add_nothing(tmp_path: Path) -> None:
    found = sizes(model(tmp_path / "v32.gguf", "deepseek32", SIZES | SPARSE), "--context", TOKENS)
    more = found["MLA, K only, and DSA indexer", "F16"]["bytes"] - found["MLA, K only", "F16"]["bytes"]
    assert more == 2440 * MIB
    assert found["MLA, K only", "F16"]["bytes"] == 10980 * MIB


def test_sequences_multiply(v3: Path) -> None:
    one, four = (sizes(v3, "--context", 4096, "--sequences", n)["MLA, K only", "F16"]["bytes"] for n in (1, 4))
    assert four == 4 * one


@pytest.mark.parametrize("sequences", [1, 3])
def test_what_fits_fits_and_one_token_more_does_not(v3: Path, sequences: int) -> None:
    for record in sizes(v3, "--fit", "2G", "--sequences", sequences).values():
        token = record["bytes_per_token"] * sequences
        room = 2 * 10**9 - WEIGHTS
        assert record["longest_context"] * token <= room < (record["longest_context"] + 1) * token


def test_what_has_no_answer_is_a_sentence(v3: Path, tmp_path: Path) -> None:
    llama = model(tmp_path / "llama.gguf", "llama", {"block_count": 2})
    assert "not a model with multi-head latent attention" in inspect(llama, "--context", 5, status=2)
    assert "the weights alone do not fit" in inspect(v3, "--fit", "1M", status=2)
    assert "this is not a size" in inspect(v3, "--fit", "80 gigabytes", status=2)
