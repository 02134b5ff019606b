"""`verify` on models with sparse attention and multi-token prediction: right files pass, in words and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gguf_mla.cli.printing import as_json
from gguf_mla.forward.of_config import model_of_config
from gguf_mla.sources.config import Config
from tests.support.command import Answer, convert, gguf_mla
from tests.support.damage import configure
from tests.support.html import Page
from tests.support.hub import config_of
from tests.verify.conftest import SPARSE_KINDS, SPARSE_TYPES
from verify import rounding
from verify.job import Proof, Request, prove
from verify.levels import logits
from verify.report import terminal
from verify.report.page import page

TOP_K = 16


def request(files: Path, kind: str, candidate: Path, level: str = "logits", **options: Any) -> Request:
    return Request(files / kind, candidate, level, context=64, chunks=1, threads=2, **options)


@pytest.mark.parametrize("kind", SPARSE_KINDS)
@pytest.mark.parametrize("stored", SPARSE_TYPES)
def test_a_right_file_is_right_at_every_level(kind: str, stored: str, sparse_files: Path) -> None:
    proof = prove(request(sparse_files, kind, sparse_files / f"{kind}-{stored}.gguf"))
    assert proof.right, proof.findings[0].sentence
    assert list(proof.seconds) == ["structure", "weights", "attention", "logits"]
    model = proof.candidate.reference.weights.model
    assert len(proof.attention) == len(proof.layers) == model.layers + 1
    assert len(proof.predicted) == 1
    choices = [result.choice for result in proof.layers if result.choice is not None]
    assert len(choices) == (0 if kind == "glm-lite" else 3)  # glm-dsa: two of three layers, and prediction
    assert [choice.sets for choice in choices] == [64 - TOP_K] * (len(choices) - 1) + [63 - TOP_K] * bool(choices)
    if stored == "F32":
        # Sets that are the same up to ties may differ in a token that ties: one of 16 in every set, were all to tie.
        assert all(choice.same == choice.sets and choice.common > 1 - 1 / TOP_K for choice in choices)


@pytest.mark.parametrize("form", ["vanilla", "gathered", "union", "vanilla-union", "paged"])
def test_any_form_attends_to_the_choice(form: str, sparse_files: Path) -> None:
    proof = prove(request(sparse_files, "v32", sparse_files / "v32-F32.gguf", "attention", form=form))
    assert proof.right, proof.findings[0].sentence
    model = proof.candidate.reference.weights.model
    assert max(result.measured.wmape for result in proof.attention) < rounding.relative(replace(model, layers=1), 64)


def test_layers_are_judged_by_the_first_chunks_and_predictions_by_all(
    sparse_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(sparse_files, "v32", sparse_files / "v32-Q8_0.gguf")
    alone, found = prove(asked), {}
    for judged in (1, 2 * 64, 1000):
        monkeypatch.setattr(logits, "JUDGED", judged)
        found[judged] = prove(replace(asked, chunks=3))
    sets = {judged: [layer.choice.sets for layer in proof.layers if layer.choice] for judged, proof in found.items()}
    of_one = [64 - TOP_K] * 2 + [63 - TOP_K]
    assert sets == {1: of_one, 128: [2 * count for count in of_one], 1000: [3 * count for count in of_one]}
    for first, every in zip(alone.layers, found[1].layers, strict=True):
        # ties of choices may fall otherwise
        assert every.measured.wmape == pytest.approx(first.measured.wmape, rel=0.05)
    for proof in found.values():
        assert [len(scores.kld) for scores in (proof.scores, *proof.predicted)] == [3 * 31, 3 * 31]


@pytest.fixture(scope="module")
def proof(sparse_files: Path) -> Proof:
    return prove(request(sparse_files, "v32", sparse_files / "v32-Q8_0.gguf"))


def test_choices_and_predictions_are_reported(proof: Proof) -> None:
    shown = terminal.text(proof)
    for words in ("choice of layer  choices  the same", "prediction 2 tokens ahead", "right, as far as"):
        assert words in shown
    content = json.loads(as_json(terminal.content(proof)))
    choice = content["layers"][1]["choice"]
    assert choice["sets"] == 64 - TOP_K
    assert 0 < choice["same"] <= choice["sets"]
    assert 0.9 < choice["common"] <= 1
    assert 0 < choice["scores"]["wmape"] < 0.03
    assert content["predicted"][0]["tokens"] == 31
    parser, written = Page(), page(proof)
    parser.feed(written)
    assert parser.open == parser.loaded == []
    for words in ("What the indexers choose", "Prediction 2 tokens ahead"):
        assert words in written


def verify(*arguments: object, status: int = 0) -> Answer:
    answer = gguf_mla("verify", *arguments, "--chunks", 1, "--context", 64)
    assert answer.status == status, answer.output
    return answer


def test_a_file_without_prediction_is_right_and_said_to_be(sparse_files: Path, tmp_path: Path) -> None:
    convert(sparse_files / "v32", tmp_path / "out.gguf", "Q8_0", "--no-mtp")
    shown = verify(sparse_files / "v32", tmp_path / "out.gguf").output
    assert "warning: The file leaves out the reference's multi-token prediction (layers: 1)." in shown
    assert "prediction 2" not in shown


def test_a_light_file_is_right_as_a_dense_model(sparse_files: Path, tmp_path: Path) -> None:
    convert(sparse_files / "v32", tmp_path / "light.gguf", "Q8_0", "--light")
    shown = verify(sparse_files / "v32", tmp_path / "light.gguf").output
    assert "The file leaves out the indexer, so all tokens are attended to" in shown
    assert "the same up to 16 tokens" in shown
    assert "choice of layer" not in shown


def test_a_sparse_file_is_a_reference_too(sparse_files: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text(" ".join(map(str, range(100, 164))))
    files = sparse_files / "glm-dsa-F32.gguf", sparse_files / "glm-dsa-Q8_0.gguf"
    shown = verify(*files, "--tokens", tmp_path / "ids.txt").output
    assert "choice of layer" in shown
    wrong = verify(sparse_files / "v32-F32.gguf", files[1], "--tokens", tmp_path / "ids.txt", status=1).output
    assert "general.architecture: is another (expected deepseek32, found glm-dsa)" in wrong


def restated(checkpoint: Path, out: Path, name: str, changes: dict[str, Any]) -> Path:
    """A checkpoint of links to another's files but for one, in which some keys are others."""
    out.mkdir()
    for source in checkpoint.iterdir():
        (out / source.name).symlink_to(source)
    content = json.loads((out / name).read_text())
    (out / name).unlink()
    (out / name).write_text(json.dumps(content | changes))
    return out


def test_bos_comes_first_whatever_the_tokenizers_files_say(sparse_files: Path, tmp_path: Path) -> None:
    changes = {"add_bos_token": False}
    checkpoint = restated(sparse_files / "v32", tmp_path / "model", "tokenizer_config.json", changes)
    verify(checkpoint, sparse_files / "v32-Q8_0.gguf", "--level", "structure")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"index_head_dim": 96}, "expected a power of two, not below qk_rope_head_dim, found 96"),
        ({"index_head_dim": 32}, "found 32"),
        ({"index_topk": 0}, "index_topk cannot be used"),
        ({"index_n_heads": None}, "index_n_heads is missing"),
    ],
)
def test_an_indexer_that_cannot_be_is_refused(
    changes: dict[str, Any], words: str, sparse_files: Path, checkpoint: Path
) -> None:
    described = {"architectures": ["DeepseekV32ForCausalLM"], "index_head_dim": 128, "index_n_heads": 32}
    configure(**{**described, "index_topk": 16, **changes})(checkpoint)
    assert words in verify(checkpoint, sparse_files / "v32-F32.gguf", status=2).output


@pytest.mark.parametrize(
    ("stated", "own"),
    [
        ({}, "FFFF"),
        ({"indexer_types": ["full", "shared", "shared", "full"]}, "FSSF"),
        ({"index_topk_pattern": "FSFS"}, "FSFS"),
        ({"index_topk_freq": 2}, "FFSF"),
        ({"index_topk_freq": 2, "index_skip_topk_offset": 1}, "FSFS"),
    ],
)
def test_which_layers_of_glm_choose(stated: dict[str, Any], own: str) -> None:
    config = Config({**config_of("glm-dsa", "bundled"), **stated}, Path("config.json"))
    found = model_of_config(config).indexer.own_layers
    assert found == tuple(kind == "F" for kind in own)


def test_a_quarter_of_the_layers_of_glm_5_2_choose() -> None:
    published = {"num_hidden_layers": 78, "index_topk_freq": 4, "index_skip_topk_offset": 3}
    config = Config(config_of("glm-dsa", "bundled", **published), Path("config.json"))
    own = model_of_config(config).indexer.own_layers
    assert [layer for layer, chooses in enumerate(own) if chooses] == [0, 1, *range(2, 78, 4)]


def test_a_configuration_that_says_how_the_indexer_rotates_is_believed(sparse_files: Path, tmp_path: Path) -> None:
    for interleaved, status in ((True, 0), (False, 1)):
        changes = {"indexer_rope_interleave": interleaved}
        checkpoint = restated(sparse_files / "glm-dsa", tmp_path / str(interleaved), "config.json", changes)
        options = "--level", "attention", "--quiet"
        shown = verify(checkpoint, sparse_files / "glm-dsa-F32.gguf", *options, status=status).output
        assert ("blk.0.indexer: the tokens are scored otherwise" in shown) == (not interleaved)


@pytest.mark.usefixtures("judges")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # transformers' own
@pytest.mark.parametrize("stated", [{}, {"index_topk_freq": 2}, {"index_topk_freq": 3, "index_skip_topk_offset": 1}])
def test_which_layers_of_glm_choose_is_what_transformers_says(stated: dict[str, Any]) -> None:
    from transformers import GlmMoeDsaConfig

    content = config_of("glm-dsa", "bundled", num_hidden_layers=9) | stated
    found = model_of_config(Config(content, Path("config.json"))).indexer.own_layers
    expected = GlmMoeDsaConfig(num_hidden_layers=9, **stated).indexer_types
    assert found == tuple(kind == "full" for kind in expected)


@pytest.mark.engine
@pytest.mark.usefixtures("judges")
@pytest.mark.parametrize("kind", ["v32", "glm-dsa"])
def test_llama_cpp_says_what_the_forward_pass_says(kind: str, sparse_files: Path) -> None:
    options = "--level", "structure", "--engine", "llama.cpp", "--json"
    answer = verify(sparse_files / kind, sparse_files / f"{kind}-F32.gguf", *options)
    prompts = json.loads(answer.output)["engine"]
    # 16 tokens are attended to; the differences are within their limit, or the file would be called wrong
    assert [prompt["length"] for prompt in prompts] == [8, 16, 32, 64]
