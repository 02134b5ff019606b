"""Every damaged or impossible input ends in one sentence and its status, with nothing under the output's name."""

from __future__ import annotations

import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support import bulk, hub, kinds
from tests.support.command import Answer, convert, gguf_mla, start
from tests.support.damage import (
    EXPERT,
    INDEX,
    KV_A,
    NORM,
    Q_A,
    add_tensors,
    configure,
    cut,
    empty,
    entry,
    header_length,
    header_text,
    no_index,
    only_pickle,
    outside,
    overlap,
    place,
    remove_file,
    remove_tensor,
    rename_tensor,
    rope,
    shard_of,
    write_text,
    write_value,
)
from tests.support.safetensors_file import rewrite_header

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Fault:
    """A damage, and words that the sentence has: what is concerned, what was expected, what was found."""

    damage: Callable[[Path], object]
    words: tuple[str, ...]
    options: tuple[str, ...] = ()


def fault(damage: Callable[[Path], object], *words: str, options: tuple[str, ...] = ()) -> Fault:
    return Fault(damage, words, options)


FAULTS = {
    # files
    "missing shard": fault(
        remove_file("model-00003-of-000005.safetensors"), "model-00003-of-000005.safetensors", "missing"
    ),
    "truncated shard": fault(cut(1000), ".safetensors", "cut off", "bytes"),
    "shard cut in its header": fault(
        lambda d: shard_of(d, Q_A).write_bytes(shard_of(d, Q_A).read_bytes()[:100]), "header", "92 bytes"
    ),
    "empty shard": fault(empty, ".safetensors", "0 bytes"),
    "shard with bytes behind its tensors": fault(
        lambda d: shard_of(d, Q_A).write_bytes(shard_of(d, Q_A).read_bytes() + bytes(64)), ".safetensors", "no tensor"
    ),
    "index names ../": fault(outside(absolute=False), INDEX, "outside the directory", "../beside.safetensors"),
    "index names an absolute path": fault(
        outside(absolute=True), INDEX, "outside the directory", "/beside.safetensors"
    ),
    "index names a number": fault(place(Q_A, 7), INDEX, Q_A, "7"),
    "index names the parent": fault(place(Q_A, ".."), ".."),
    "index names no text": fault(place(Q_A, "\ud800.safetensors"), "missing"),
    "index names a NUL": fault(place(Q_A, "\0.safetensors")),
    "index names more than a name can hold": fault(place(Q_A, "a" * 300)),
    "index is no JSON": fault(write_text(INDEX, "{"), INDEX, "JSON"),
    "index without weight_map": fault(write_text(INDEX, "{}"), INDEX, "weight_map"),
    "index places a tensor in another shard": fault(
        place(Q_A, "model-00003-of-000005.safetensors"), Q_A, "model-00003-of-000005.safetensors"
    ),
    "no index, and a shard missing": fault(
        lambda d: [no_index(d), remove_file("model-00003-of-000005.safetensors")(d)],
        "model-00003-of-000005.safetensors",
        "missing",
    ),
    "no index, and no numbers that prove anything": fault(
        lambda d: [no_index(d), *(path.rename(d / f"part{path.name[8:11]}.safetensors") for path in d.glob("model-*"))],
        INDEX,
        "--weights",
    ),
    "only pickle": fault(only_pickle, "pickle", ".bin"),
    "no config": fault(remove_file("config.json"), "config.json", "No such file"),
    "config is no JSON": fault(write_text("config.json", "{'a': 1}"), "config.json", "not valid JSON"),
    "config is a list": fault(write_text("config.json", "[]"), "config.json", "object", "list"),
    "config nests without end": fault(write_text("config.json", "[" * 100_000), "config.json", "JSON"),
    "config is no text": fault(lambda d: (d / "config.json").write_bytes(b"\xff\xfe{}"), "config.json"),
    "no tokenizer": fault(remove_file("tokenizer.json"), "tokenizer.json"),
    "tokenizer is no JSON": fault(write_text("tokenizer.json", "{"), "tokenizer.json", "JSON"),
    # headers
    "header longer than the file": fault(header_length(1 << 30), ".safetensors", "header", str(1 << 30)),
    "header longer than anything": fault(header_length((1 << 64) - 1), ".safetensors", "header", str((1 << 64) - 1)),
    "header of length 0": fault(header_length(0), ".safetensors", "header"),
    "header is no JSON": fault(header_text(b"{]" + b" " * 6), ".safetensors", "JSON"),
    "header is a list": fault(header_text(b"[]" + b" " * 6), ".safetensors", "object"),
    "header names a tensor twice": fault(header_text(b'{"a":{},"a":{}} '), ".safetensors", "'a'", "twice"),
    "overlapping offsets": fault(overlap, "overlaps", "model.layers.1."),
    "offsets behind the end": fault(entry(NORM, data_offsets=[1 << 40, (1 << 40) + 512]), ".safetensors", "hole"),
    "offsets backwards": fault(entry(NORM, data_offsets=[512, 0]), NORM, "malformed"),
    "offset below zero": fault(entry(NORM, data_offsets=[-512, 0]), NORM, "malformed"),
    "offsets as words": fault(entry(NORM, data_offsets=["0", "512"]), NORM, "malformed"),
    "shape larger than its data": fault(entry(NORM, shape=[257]), NORM, "514 bytes", "512 bytes"),
    "shape beyond 64 bits": fault(entry(NORM, shape=[1 << 40, 1 << 40, 2]), NORM, "512 bytes"),
    "shape below zero": fault(entry(NORM, shape=[-16, -16]), NORM, "malformed"),
    "unknown dtype": fault(entry(NORM, dtype="F3"), NORM, "F3", "BF16"),
    "dtype is a list": fault(entry(NORM, dtype=[]), NORM, "[]"),
    "entry is no object": fault(
        lambda d: rewrite_header(shard_of(d, NORM), lambda h: h.update({NORM: 5})), NORM, "malformed"
    ),
    # tensors
    "wrong shape": fault(entry("lm_head.weight", shape=[256, 2048]), "lm_head.weight", "[2048, 256]", "[256, 2048]"),
    "wrong shape of FP8": fault(entry(KV_A, shape=[256, 576]), KV_A, "[2, 5]", "[5, 2]"),
    "wrong shape of a norm": fault(entry(NORM, shape=[16, 16]), NORM, "[256]", "[16, 16]"),
    "an integer weight": fault(entry(NORM, dtype="I16"), NORM, "I16", "BF16"),
    "missing scale": fault(remove_tensor(f"{Q_A}_scale_inv"), Q_A, "scale", f"{Q_A}_scale_inv"),
    "scale of the wrong shape": fault(entry(f"{KV_A}_scale_inv", shape=[2, 5]), KV_A, "[5, 2]", "[2, 5]"),
    "scale of an integer type": fault(entry(f"{KV_A}_scale_inv", dtype="I32"), f"{KV_A}_scale_inv", "I32"),
    "norm missing from one layer": fault(remove_tensor(NORM), NORM, "missing"),
    "expert missing from one layer": fault(
        lambda d: [remove_tensor(n)(d) for n in (EXPERT, f"{EXPERT}_scale_inv")], EXPERT, "missing"
    ),
    "output matrix missing": fault(remove_tensor("lm_head.weight"), "lm_head.weight", "missing"),
    "unknown tensors": fault(
        add_tensors("model.layers.1.mystery.weight", "visual.patch.bias"),
        "2 tensors",
        "model.layers.1.mystery.weight",
        "visual.patch.bias",
    ),
    "a misnamed tensor": fault(
        rename_tensor(NORM, NORM.replace("input", "inputs")), NORM, NORM.replace("input", "inputs")
    ),
    "an expert too many": fault(
        add_tensors("model.layers.1.mlp.experts.4.up_proj.weight"), "model.layers.1.mlp.experts.4.up_proj.weight"
    ),
    "a bias": fault(add_tensors("model.layers.0.self_attn.o_proj.bias"), "model.layers.0.self_attn.o_proj.bias"),
    "a scale without its weight": fault(
        add_tensors("model.layers.0.self_attn.o_proj.weight_scale"), "o_proj.weight_scale"
    ),
    "NaN in BF16": fault(write_value(NORM, 17, b"\xc0\x7f"), NORM, "not a finite", "17"),
    "Inf in BF16": fault(
        write_value("model.embed_tokens.weight", 256 * 3 + 5, b"\x80\xff"),
        "model.embed_tokens.weight",
        "row 3, column 5",
    ),
    "NaN in FP8": fault(write_value(EXPERT, 256 * 200 + 130, b"\xff"), EXPERT, "row 200, column 130"),
    "NaN in kv_b, which is transposed": fault(
        write_value("model.layers.1.self_attn.kv_b_proj.weight", 512 * 300 + 7, b"\x7f"),
        "model.layers.1.self_attn.kv_b_proj.weight",
        "row 300, column 7",
    ),
    "NaN in a scale": fault(
        write_value(f"{KV_A}_scale_inv", 9, np.float32("nan").tobytes()), KV_A, "row 512, column 128"
    ),
    "Inf in a scale": fault(
        write_value(f"{KV_A}_scale_inv", 9, np.float32("inf").tobytes()), KV_A, "row 512, column 128"
    ),
    # configurations
    "unknown architecture": fault(
        configure(architectures=["LlamaForCausalLM"]), "config.json", "LlamaForCausalLM", "DeepseekV3ForCausalLM"
    ),
    "architecture is a list": fault(configure(architectures=[[]]), "config.json", "[]", "DeepseekV3ForCausalLM"),
    "no architecture": fault(configure(architectures=None, model_type=None), "config.json", "DeepseekV3ForCausalLM"),
    "attention_factor differs from mscale": fault(
        rope(attention_factor=0.707), "config.json", "attention_factor", "0.707", "mscale_all_dim"
    ),
    "yarn without mscale": fault(rope(mscale=None), "config.json", "mscale missing", "mscale_all_dim 1"),
    "another rope scaling": fault(rope(type="dynamic"), "config.json", "dynamic", "yarn"),
    "rope_interleave false": fault(configure(rope_interleave=False), "config.json", "rope_interleave"),
    "unknown topk_method": fault(
        configure(topk_method="aux_topk"), "config.json", "topk_method", "aux_topk", "noaux_tc"
    ),
    "unknown scoring_func": fault(configure(scoring_func="tanh"), "config.json", "scoring_func", "tanh", "sigmoid"),
    "unknown activation": fault(configure(hidden_act="gelu"), "config.json", "hidden_act", "gelu", "silu"),
    "unknown quantization method": fault(
        configure(quantization_config={"quant_method": "gptq", "bits": 4}), "config.json", "quant_method", "gptq", "fp8"
    ),
    "quant_method is a list": fault(configure(quantization_config={"quant_method": []}), "config.json", "[]", "fp8"),
    "quantization is a word": fault(configure(quantization_config="fp8"), "config.json", "fp8"),
    "FP8 without quantization_config": fault(configure(quantization_config=None), "F8_E4M3", "quantization_config"),
    "FP8 of another format": fault(configure(quantization_config=kinds.FP8 | {"fmt": "e5m2"}), "fmt", "e5m2", "e4m3"),
    "FP8 without block size": fault(
        configure(quantization_config=kinds.FP8 | {"weight_block_size": None}), "weight_block_size", "[128, 128]"
    ),
    "block size 0": fault(
        configure(quantization_config=kinds.FP8 | {"weight_block_size": [0, 0]}), "weight_block_size"
    ),
    "hidden_size is a word": fault(configure(hidden_size="256"), "config.json", "hidden_size", "256"),
    "hidden_size is missing": fault(configure(hidden_size=None), "config.json", "hidden_size", "missing"),
    "layers without number": fault(configure(num_hidden_layers=-1), "config.json", "num_hidden_layers", "-1"),
    "more layers than there are": fault(configure(num_hidden_layers=3), "model.layers.2.", "missing"),
    "fewer layers than there are": fault(configure(num_hidden_layers=1, num_nextn_predict_layers=0), "model.layers.1."),
    "a smaller vocabulary than the tokenizer's": fault(configure(vocab_size=2000), "2000", "2048"),
    "context length beyond 32 bits": fault(configure(max_position_embeddings=1 << 40), "max_position_embeddings"),
    "a theta that is no number": fault(configure(rope_theta="NaN"), "config.json", "rope_theta"),
    "impossible --pre": fault(lambda _: None, "--pre", "two words", "deepseek-v3", options=("--pre", "two words")),
    "unknown --type": fault(lambda _: None, "Q9_9", "F32", "Q8_0", "BF16", options=("--type", "Q9_9")),
    "no threads": fault(lambda _: None, "--threads", options=("--threads", "0")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_a_sentence(name: str, checkpoint: Path, tmp_path: Path) -> None:
    case = FAULTS[name]
    case.damage(checkpoint)
    out = tmp_path / "out.gguf"
    check_refusal(gguf_mla("convert", checkpoint, out, "--quiet", *case.options), case.words)
    assert not list(tmp_path.glob("out*"))


def check_refusal(answer: Answer, words: tuple[str, ...], status: int = 2) -> None:
    assert answer.status == status, answer.output
    assert "Traceback" not in answer.output
    sentence = next(
        line for line in answer.output.splitlines() if line.lower().startswith(("gguf-mla: error: ", "error: "))
    )
    assert sentence.endswith(".")
    assert [word for word in words if word not in sentence] == [], sentence


def test_the_undamaged_checkpoint_converts(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.glob("out*")] == ["out.gguf"]


@pytest.mark.parametrize("found", ["nothing", "a file"])
def test_no_checkpoint(found: str, tmp_path: Path) -> None:
    if found == "a file":
        (tmp_path / "model").write_text("no directory")
    answer = gguf_mla("convert", tmp_path / "model", tmp_path / "out.gguf")
    check_refusal(answer, (str(tmp_path / "model"), "file" if found == "a file" else "does not exist"))


@pytest.mark.parametrize("parent", ["missing", "file", "missing/deeper", "config.json"])
def test_output_directory_that_cannot_be_written(parent: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    directory = checkpoint / parent if parent == "config.json" else tmp_path / parent
    answer = gguf_mla("convert", checkpoint, directory / "out.gguf", "--quiet")
    check_refusal(answer, (str(directory),))
    assert (tmp_path / "file").read_text() == "in the way"
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("way", ["itself", "symlink", "relative", "directory symlink", "config"])
def test_output_equal_to_an_input(way: str, checkpoint: Path, tmp_path: Path) -> None:
    shard = checkpoint / "config.json" if way == "config" else shard_of(checkpoint, Q_A)
    (tmp_path / "link.gguf").symlink_to(shard)
    (tmp_path / "twin").symlink_to(checkpoint)
    ways = {
        "itself": shard,
        "config": shard,
        "symlink": tmp_path / "link.gguf",
        "relative": checkpoint / ".." / checkpoint.name / shard.name,
        "directory symlink": tmp_path / "twin" / shard.name,
    }
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    check_refusal(gguf_mla("convert", checkpoint, ways[way], "--quiet", "--overwrite"), ("input", ways[way].name))
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_an_existing_output_is_not_replaced_unasked(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_text("precious")
    check_refusal(gguf_mla("convert", checkpoint, tmp_path / "out.gguf"), ("out.gguf", "exists"))
    assert (tmp_path / "out.gguf").read_text() == "precious"


def test_a_failing_conversion_leaves_the_old_output(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_text("precious")
    FAULTS["NaN in FP8"].damage(checkpoint)
    check_refusal(gguf_mla("convert", checkpoint, tmp_path / "out.gguf", "--overwrite", "--quiet"), (EXPERT,))
    assert [path.name for path in tmp_path.glob("out*")] == ["out.gguf"]
    assert (tmp_path / "out.gguf").read_text() == "precious"


def test_a_symlinked_hub_cache_works(pristine: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / pristine.name
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(pristine.iterdir())):
        shutil.copyfile(path, blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / f"{number:064x}")
    convert(pristine, tmp_path / "plain.gguf")
    convert(snapshot, tmp_path / "linked.gguf")
    assert (tmp_path / "linked.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


def test_v2_groups_are_a_warning(tmp_path: Path) -> None:
    checkpoint = hub.write(tmp_path / "v2", "v2", num_hidden_layers=2, n_routed_experts=4, num_experts_per_tok=2)
    answer = gguf_mla("convert", checkpoint, tmp_path / "out.gguf", "--quiet")
    assert answer.status == 0
    (warning,) = [line for line in answer.output.splitlines() if line.startswith("warning: ")]
    assert "group_limited_greedy" in warning


# ------------------------------------------------------------------------------------------ what only a process shows


def test_a_process_says_one_sentence_and_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    FAULTS["missing shard"].damage(checkpoint)
    process = start("convert", checkpoint, tmp_path / "out.gguf")
    output, _ = process.communicate(timeout=60)
    check_refusal(Answer(process.returncode, output), FAULTS["missing shard"].words)
    assert len(output.splitlines()) == 1


def test_a_full_disk_is_status_3(checkpoint: Path, tmp_path: Path) -> None:
    import resource

    limit = 1_000_000  # bytes a file of that process may have
    process = start(
        "convert",
        checkpoint,
        tmp_path / "out.gguf",
        "--quiet",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    output, _ = process.communicate(timeout=60)
    check_refusal(Answer(process.returncode, output), ("out.gguf", "writing failed"), status=3)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_routed_experts"])
def test_a_count_beyond_reason_costs_neither_time_nor_memory(key: str, checkpoint: Path, tmp_path: Path) -> None:
    import resource

    configure(**{key: 1 << 31})(checkpoint)
    limit = 4 << 30  # bytes of address space
    process = start(
        "convert",
        checkpoint,
        tmp_path / "out.gguf",
        "--quiet",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    output, _ = process.communicate(timeout=60)
    check_refusal(Answer(process.returncode, output), (key, str(1 << 31)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number: signal.Signals, tmp_path: Path) -> None:
    checkpoint = bulk.write(tmp_path / "model", "v3fp8", layers=3, experts=32, tokenizer="bundled")
    out = tmp_path / "out.gguf"
    process = start("convert", checkpoint, out, "--type", "Q8_0", "--threads", "1", "--quiet")
    wait_for(out.with_name("out.gguf.partial"))
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGTERM), output
    assert "Traceback" not in output
    assert not out.exists()
    if number == signal.SIGINT:
        assert "interrupted" in output


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.01)
