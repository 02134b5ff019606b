"""`gguf-mla quantize`, `split` and `merge` as they are used, on the bundled checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from gguf_mla import codec
from gguf_mla.cli.main import main
from gguf_mla.container.reader import GgufFile, open_gguf
from gguf_mla.container.splits import open_gguf_parts
from tests.support import hub
from tests.support.matrices import write_imatrix


def run(*arguments: object, status: int = 0) -> Any:
    result = CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="session")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantize") / "tiny-BF16.gguf"
    run("convert", hub.BUNDLED, path, "--quiet")
    return path


@pytest.fixture(scope="session")
def matrix(bf16: Path) -> Path:
    """An importance matrix with a row for each expert and head."""
    random, entries = np.random.default_rng(3), {}
    for tensor in open_gguf(bf16).tensors.values():
        if len(tensor.shape) > 1:
            rows = math.prod(tensor.shape[:-2])
            sums = random.random((rows, tensor.shape[-1]), np.float32) + np.float32(0.01)
            entries[tensor.name] = sums, np.full(rows, 8, np.float32)
    path = bf16.with_name("matrix.gguf")
    write_imatrix(path, entries, datasets=["words.txt"], chunk_count=3, chunk_size=512)
    return path


@pytest.fixture(autouse=True)
def in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def same_tensors(a: GgufFile, b: GgufFile) -> bool:
    return list(a.tensors) == list(b.tensors) and all(
        tensor.type == b.tensors[name].type and tensor.read().tobytes() == b.tensors[name].read().tobytes()
        for name, tensor in a.tensors.items()
    )


def test_every_tensor_is_what_an_independent_quantizer_makes_of_it(bf16: Path) -> None:
    run("quantize", bf16, "out.gguf", "Q8_0")
    source, out = open_gguf(bf16), open_gguf("out.gguf")
    assert list(out.tensors) == list(source.tensors)
    for name, tensor in out.tensors.items():
        values = source[name].values()
        expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType[tensor.type])
        assert tensor.read().tobytes() == expected.tobytes(), name


def test_metadata_keep_their_order_and_what_is_unknown_stays(bf16: Path) -> None:
    run("quantize", bf16, "out.gguf", "Q4_0", "--override-kv", "custom.key=str:a=b:c")
    run("quantize", "out.gguf", "again.gguf", "COPY")
    before, after = open_gguf(bf16).values, open_gguf("again.gguf").values
    assert list(after) == [*before, "custom.key"]
    assert after["custom.key"].data == "a=b:c"
    assert {key for key in before if after[key] != before[key]} == {"general.file_type"}
    assert after["general.file_type"].data == 2


def test_straight_from_the_checkpoint_or_by_way_of_a_file_is_the_same(bf16: Path, matrix: Path) -> None:
    run("quantize", bf16, "two-steps.gguf", "Q4_K_M", "--imatrix", matrix)
    run("convert", hub.BUNDLED, "one-step.gguf", "--type", "Q4_K_M", "--imatrix", matrix)
    two, one = open_gguf("two-steps.gguf"), open_gguf("one-step.gguf")
    assert same_tensors(one, two)
    assert one.values == two.values


def test_each_expert_is_weighed_with_its_own_row(bf16: Path, matrix: Path) -> None:
    run("quantize", bf16, "out.gguf", "Q4_K_M", "--imatrix", matrix)
    name = "blk.1.ffn_gate_exps.weight"
    values, out = open_gguf(bf16)[name].values(), open_gguf("out.gguf").tensors[name]
    sums = open_gguf(matrix)[f"{name}.in_sum2"].values() / np.float32(8)
    expected = [codec.encode(expert, out.type, importance=row) for expert, row in zip(values, sums, strict=True)]
    assert out.read().tobytes() == np.concatenate(expected).tobytes()
    assert out.read().tobytes() != codec.encode(values.reshape(-1, 256), out.type).tobytes()


def test_several_types_from_one_reading_equal_single_runs(bf16: Path) -> None:
    run("quantize", bf16, "all-{type}.gguf", "Q4_0", "Q8_0", "F16")
    for kind in ("Q4_0", "Q8_0", "F16"):
        run("quantize", bf16, "one.gguf", kind, "--overwrite")
        assert Path(f"all-{kind}.gguf").read_bytes() == Path("one.gguf").read_bytes()
    run("convert", hub.BUNDLED, "--type", "Q4_0", "--type", "BF16")
    assert Path("tiny-deepseek-v3-Q4_0.gguf").exists()
    assert same_tensors(open_gguf("tiny-deepseek-v3-BF16.gguf"), open_gguf(bf16))


def test_a_quantized_file_is_requantized_only_on_request(bf16: Path) -> None:
    run("quantize", bf16, "q8.gguf", "Q8_0")
    refused = run("quantize", "q8.gguf", "q4.gguf", "Q4_0", status=2).stderr
    assert "already quantized as Q8_0" in refused
    assert not Path("q4.gguf").exists()
    run("quantize", "q8.gguf", "q4.gguf", "Q4_0", "--allow-requantize")
    name = "blk.0.ffn_down.weight"
    values = open_gguf("q8.gguf")[name].values()
    assert open_gguf("q4.gguf").tensors[name].read().tobytes() == codec.encode(values, "Q4_0").tobytes()


def test_split_and_merge_are_inverses(bf16: Path) -> None:
    run("split", bf16, "part", "--split-max-size", "3M")
    parts = sorted(Path().iterdir())
    assert len(parts) > 3
    assert same_tensors(open_gguf_parts(parts[0]), open_gguf(bf16))
    run("merge", parts[0], "whole.gguf")
    assert Path("whole.gguf").read_bytes() == bf16.read_bytes()


def test_a_split_model_is_quantized_and_stays_split_on_request(bf16: Path) -> None:
    run("split", bf16, "part", "--split-max-tensors", 20)
    first = min(Path().iterdir())
    run("quantize", first, "one.gguf", "Q8_0")
    run("quantize", first, "kept", "Q8_0", "--keep-split")
    kept = open_gguf_parts("kept-00001-of-00003.gguf")
    assert [len(file.tensors) for file in kept.files] == [20, 20, 12]
    assert same_tensors(kept, open_gguf("one.gguf"))


def test_types_may_be_asked_for_by_name(bf16: Path) -> None:
    options = ("--tensor-type", "attn_[kv]_b=Q8_0", "--tensor-type", "attn_k_b=F16", "--token-embedding-type", "Q5_K")
    result = run("quantize", bf16, "out.gguf", "Q4_0", *options, "--tensor-type", "nothing_like_it=Q8_0")
    tensors = open_gguf("out.gguf").tensors
    assert tensors["blk.1.attn_k_b.weight"].type == "Q8_0"
    assert tensors["token_embd.weight"].type == "Q5_K"
    assert "nothing_like_it=Q8_0 matches no tensor" in result.stderr


def test_a_dry_run_says_why_and_json_says_all(bf16: Path) -> None:
    shown = run("quantize", bf16, "Q4_K_M", "--dry-run").stdout
    assert "blk.0.attn_k_b.weight" in shown
    assert "rows of 128 do not fit Q4_K" in shown
    plan = json.loads(run("quantize", bf16, "Q4_K_M", "--dry-run", "--json").stdout)
    assert [part["path"] for output in plan["outputs"] for part in output["parts"]] == ["tiny-Q4_K_M.gguf"]
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("out.gguf", "IQ2_XXS"), "cannot be encoded without importance: "),
        (("out.gguf", "Q4_K_X"), "Perhaps you mean Q4_K"),
        (("out.gguf", "Q4_0", "--tensor-type", "attn=Q9"), "Q9"),
        (("out.gguf", "Q4_0", "--tensor-type", "att(n=Q8_0"), "regular expression"),
        (("out.gguf", "Q4_0", "--override-kv", "a.b=real:1"), "--override-kv"),
        (("out.gguf", "Q4_0", "--override-kv", "a.b=int:one"), "'one' is no int"),
        (("nowhere/out.gguf", "Q4_0"), "does not exist"),
        (("out.gguf", "Q4_0", "Q8_0"), "two outputs have the same name"),
        (("out.gguf", "Q4_0", "--split-max-size", "3M", "--split-max-tensors", "2"), "exclude each other"),
        (("out.gguf", "Q4_0", "--imatrix", "missing.gguf"), "missing.gguf"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_before_anything_is_written(
    bf16: Path, arguments: tuple[str, ...], words: str
) -> None:
    assert words in run("quantize", bf16, *arguments, status=2).stderr
    assert list(Path().iterdir()) == []


def test_the_output_may_not_be_the_input(bf16: Path) -> None:
    before = bf16.read_bytes()
    assert "one of the inputs" in run("quantize", bf16, bf16, "Q4_0", "--overwrite", status=2).stderr
    assert bf16.read_bytes() == before


def test_importance_of_another_size_is_refused(bf16: Path) -> None:
    entry = np.ones((1, 77), np.float32), np.ones(1, np.float32)
    write_imatrix(Path("bad.gguf"), {"blk.0.attn_q_a.weight": entry}, datasets=[], chunk_count=1, chunk_size=512)
    refused = run("quantize", bf16, "out.gguf", "Q4_K_M", "--imatrix", "bad.gguf", status=2).stderr
    assert "blk.0.attn_q_a.weight: the importance does not fit" in refused
    assert "expected 1 rows of 256 values, found 77" in refused


def test_tensors_without_importance_are_named_in_advance(bf16: Path) -> None:
    entry = np.ones((1, 256), np.float32), np.ones(1, np.float32)
    write_imatrix(Path("one.gguf"), {"blk.0.attn_q_a.weight": entry}, datasets=[], chunk_count=1, chunk_size=512)
    warned = run("quantize", bf16, "out.gguf", "Q4_K_M", "--imatrix", "one.gguf").stderr
    assert "34 tensors have no importance and are encoded without: token_embd.weight, " in warned
