"""What convert recognises, verify proves: a checkpoint that a tool has left, and the file made of it, are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.inputs.cases import CASES, Case
from tests.inputs.changes import bom, both, copy_of, prefixed
from tests.inputs.workshop import INDEX
from tests.support.command import convert, gguf_mla
from tests.support.replant import Plant, f32, string, u32
from verify.findings import Grade
from verify.job import Request, prove
from verify.raw_rows import open_raw, own_name

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = "5 900 17 1203 44 8 1999 310 72 6 1501 23 402 11 77 650"
ARCH = "deepseek2."
PROVEN = (
    "A1", "A1 FP8 with scales", "A2 with --pre", "A3", "A6 other bytes", "A6 the copy first", "A7",
    "A8 named", "A9", "A10", "A10 FSDP in the middle", "A10 two models, named", "A12", "A16 set",
    "A17 both", "A17 all padded", "A20", "A21", "A22", "A22 two ids", "units", "B1", "B1 GLM",
    "B1 without indexer", "B1 glm-dsa", "B2", "B2 dense", "B3 set", "B4", "B4 set", "B4 linear",
)  # fmt: skip
CONVERTS_ALONE = {"--no-mtp": 1, "--pre": 2}  # what verify sees for itself: option → how many words it is


def of_verify(options: tuple[Any, ...]) -> list[Any]:
    """The options of a conversion without those that verify does not have."""
    words, found = list(options), []
    while words:
        taken = CONVERTS_ALONE.get(words[0], 0)
        found += [] if taken else words[:1]
        del words[: taken or 1]
    return found


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    (tmp_path / "tokens.txt").write_text(TOKENS)
    return tmp_path / "tokens.txt"


def made(case: Case, directory: Path, kind: str = "BF16") -> tuple[Path, Path]:
    checkpoint = case.write(directory / "model")
    convert(checkpoint, directory / "model.gguf", kind, *case.options)
    return checkpoint, directory / "model.gguf"


def proven(case: Case, directory: Path, tokens: Path, kind: str = "BF16") -> Any:
    checkpoint, file = made(case, directory, kind)
    run = "--tokens", tokens, "--context", "16", "--threads", "1"
    return gguf_mla("verify", checkpoint, file, *run, *of_verify(case.options))


@pytest.mark.parametrize("name", PROVEN)
def test_a_file_of_what_is_recognised_is_right(name: str, tmp_path: Path, tokens: Path) -> None:
    answer = proven(CASES[name], tmp_path, tokens)
    assert answer.status == 0, answer.output
    assert ": right, as far as structure" in answer.output
    assert ", logits (" in answer.output
    assert " differs. " not in answer.output


def test_experts_of_zeros_are_right_in_blocks_too(tmp_path: Path, tokens: Path) -> None:
    answer = proven(CASES["B2"], tmp_path, tokens, "Q8_0")
    assert answer.status == 0, answer.output


def test_the_option_that_convert_needed_is_needed_here(tmp_path: Path, tokens: Path) -> None:
    for name, words in (("B3 set", "expert groups"), ("A17 set", "wrong shape"), ("A8 named", "--weights")):
        checkpoint, file = made(CASES[name], tmp_path / name)
        answer = gguf_mla("verify", checkpoint, file, "--tokens", tokens, "--quiet")
        assert answer.status == 2, answer.output
        assert words in answer.output


def test_what_is_read_another_way_is_said(tmp_path: Path, tokens: Path) -> None:
    assert "different bytes" in proven(CASES["A6 other bytes"], tmp_path, tokens).output


def test_a_lost_pre_tokenizer_is_not_judged(tmp_path: Path, tokens: Path) -> None:
    answer = proven(CASES["A2 with --pre"], tmp_path, tokens)
    assert "tokenizer.ggml.pre: was not compared: the reference's tokenizer.json has lost" in answer.output


def test_a_file_is_no_checkpoint_to_be_read_otherwise(tmp_path: Path, tokens: Path) -> None:
    _, file = made(CASES["B2 dense"], tmp_path)
    for options in (("--set", "n_group=1"), ("--prefix", "model."), ("--weights", "*"), ("--pad-vocab",)):
        answer = gguf_mla("verify", file, file, "--tokens", tokens, *options)
        assert (answer.status, "for a checkpoint as reference" in answer.output) == (2, True)


DENSE_KEYS = (
    ("expert_shared_count", u32(1), Grade.DIFFERS),
    ("expert_shared_count", None, Grade.WRONG),
    ("expert_feed_forward_length", u32(64), Grade.DIFFERS),
    ("expert_feed_forward_length", None, Grade.WRONG),
    ("expert_gating_func", u32(2), Grade.DIFFERS),
    ("leading_dense_block_count", u32(1), Grade.WRONG),
    ("expert_used_count", u32(2), Grade.WRONG),
)
LINEAR_KEYS = (
    ("rope.scaling.factor", f32(8.0), Grade.WRONG),
    ("rope.scaling.type", string("none"), Grade.WRONG),
    ("rope.scaling.yarn_log_multiplier", None, Grade.WRONG),
    ("rope.scaling.yarn_log_multiplier", f32(0.1), Grade.WRONG),
    ("rope.scaling.original_context_length", u32(4096), Grade.DIFFERS),
)


@pytest.mark.parametrize(("case", "keys"), [("B2 dense", DENSE_KEYS), ("B4 linear", LINEAR_KEYS)])
def test_keys_of_such_files_are_judged(case: str, keys: Any, tmp_path: Path) -> None:
    checkpoint, file = made(CASES[case], tmp_path)
    plant = Plant(file)
    for name, value, grade in keys:
        changed = plant.write(tmp_path / "changed.gguf", {ARCH + name: value})
        proof = prove(Request(checkpoint, changed, "structure"))
        assert proof.grade is grade, (name, value, proof.findings)
        assert {finding.subject for finding in proof.findings} == {ARCH + name}


def test_a_file_of_linear_positions_is_a_reference(tmp_path: Path, tokens: Path) -> None:
    _, file = made(CASES["B4 linear"], tmp_path)
    proof = prove(Request(file, file, tokens=tokens, context=16))
    assert proof.grade is Grade.RIGHT, proof.findings


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("model.layers.3.mlp.gate.weight", "layers.3.mlp.gate.weight"),
        ("language_model.model.embed_tokens.weight", "embed_tokens.weight"),
        ("model.layers.2.embed_tokens.weight", "layers.2.embed_tokens.weight"),
        ("module.lm_head.weight", "lm_head.weight"),
        ("vision.patch.weight", "vision.patch.weight"),
    ],
)
def test_a_name_without_what_stands_before_it(name: str, own: str) -> None:
    assert own_name(name) == own


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_second_opinion_takes_the_copy_that_the_index_names(prefix: str, tmp_path: Path) -> None:
    planted = copy_of(f"{prefix}model.norm.weight", 2, b"\x12\x34")
    case = Case(prefixed(lambda name: prefix + name), both(planted, bom(INDEX)))
    directory = case.write(tmp_path / "model")
    raw = open_raw(directory, sorted(directory.glob("*.safetensors")), {})
    assert raw.judged("model.norm.weight") == (0,)
    assert raw.judged("model.layers.0.mlp.down_proj.weight") == (0, 255)
    assert raw.row("model.norm.weight", 0)[0] > 0.5


def test_the_second_opinion_judges_neither_of_two_models(tmp_path: Path) -> None:
    directory = CASES["A10 two models, named"].write(tmp_path / "model")
    raw = open_raw(directory, sorted(directory.glob("*.safetensors")), {})
    assert raw.judged("model.norm.weight") == ()
