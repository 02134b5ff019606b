"""The size of the key-value cache: llama.cpp's published figures for DeepSeek-V3, and what fits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from gguf_mla.cli.main import main
from gguf_mla.container.values import Kind, array, string, u32
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


V4 = {"block_count": 43, "attention.key_length": 512, "attention.indexer.key_length": 128}
V4 |= {"attention.sliding_window": 128, "context_length": 1 << 20}


def model(path: Path, architecture: str, sizes: dict[str, int], ratios: list[int] | None = None) -> Path:
    metadata = {"general.architecture": string(architecture)}
    metadata |= {f"{architecture}.{key}": u32(value) for key, value in sizes.items()}
    if ratios:
        metadata[f"{architecture}.attention.compress_ratios"] = array(Kind.U32, ratios)
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


@pytest.fixture
def v4(tmp_path: Path) -> Path:
    """DeepSeek-V4-Flash, its list as long as with the layer of multi-token prediction."""
    return model(tmp_path / "v4.gguf", "deepseek4", V4, [0, 0, *[4, 128] * 20, 4, 0])


def test_a_compressed_cache_has_its_parts_by_kinds_of_layers(v4: Path) -> None:
    """As llama.cpp allocates them for so many tokens, by its own log; the window has a batch of 512 beside it."""
    found = sizes(v4, "--context", 1 << 20)
    named = {name: record for (name, kind), record in found.items() if kind in ("F16", "F32")}
    assert {name: record["bytes"] / MIB for name, record in named.items() if name != "all of it"} == {
        "window": 32.25, "CSA entries": 5376, "indexer keys": 1344, "HCA entries": 160,
        "CSA, not yet compressed": 21 * 8 * 2048 * 4 / MIB, "indexer, not yet compressed": 21 * 8 * 512 * 4 / MIB,
        "HCA, not yet compressed": 20 * 128 * 1024 * 4 / MIB,
    }  # fmt: skip
    assert named["all of it"]["bytes"] == sum(r["bytes"] for name, r in named.items() if name != "all of it")
    assert named["all of it"]["bytes_per_token"] == 6880
    assert [named[name]["layers"] for name in ("window", "CSA entries", "HCA entries")] == [43, 21, 20]
    few = sizes(v4, "--context", 300)
    assert few["window", "F16"]["bytes"] == few["CSA entries", "F16"]["bytes"] / 21 * 43 * 2  # 512 and 256 rows
    assert "43 layers" in inspect(v4, "--context", 300)


def test_the_longest_context_of_a_compressed_cache(v4: Path) -> None:
    for sequences in (1, 3):
        fit = sizes(v4, "--fit", "2G", "--sequences", sequences)["all of it", "F16"]["longest_context"]
        bytes_of = [
            sizes(v4, "--context", tokens, "--sequences", sequences)["all of it", "F16"]["bytes"]
            for tokens in (fit, fit + 1)
        ]
        assert bytes_of[0] <= 2 * 10**9 - WEIGHTS < bytes_of[1]
    assert "all of 1048576" in inspect(v4, "--fit", "80G")


def test_ratios_that_no_layer_has_are_a_sentence(tmp_path: Path) -> None:
    strange = model(tmp_path / "v4.gguf", "deepseek4", V4, [0, 4, 64])
    assert "compress_ratios is not what layers keep" in inspect(strange, "--context", 5, status=2)


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
