"""What people really have, a case each: a checkpoint that a tool has left, and what is right for it.

`python -m tests.inputs.cases DIRECTORY` prints what becomes of every one of them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.synthetic import numbers
from tests.inputs.workshop import INDEX, Model, base, change_json, fuse_experts, shard, stack_of
from tests.support import safetensors_file
from tests.support.command import gguf_mla
from tests.support.safetensors_file import Stored

if TYPE_CHECKING:
    from collections.abc import Callable

MTP = "model.layers.2."
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4096\n"
TRUTH = "truth"  # the same values as of the unchanged checkpoint


@dataclass(frozen=True)
class Case:
    """`kind` is the unchanged checkpoint; it is changed in memory, then on the disk.

    `words` stand in the plan's warnings where it converts, in the error where `refused`; `same`: the values that come
    out are those of the unchanged checkpoint, but for tensors whose names hold one of `other`.
    """

    model: Callable[[Model], object] = lambda _: None
    files: Callable[[Path], object] = lambda _: None
    words: tuple[str, ...] = ()
    refused: bool = False
    options: tuple[Any, ...] = ()
    kind: str = "v3"
    changes: dict[str, Any] = field(default_factory=dict)
    same: bool = True
    other: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()  # words that must not be said

    def write(self, directory: Path) -> Path:
        model = base(self.kind, **self.changes)
        self.model(model)
        model.write(directory)
        self.files(directory)
        return directory


def config(**changes: Any) -> Callable[[Model], object]:
    return lambda model: model.config.update(changes)


def both(*steps: Callable[[Any], object]) -> Callable[[Any], object]:
    def run(thing: Any) -> None:
        for step in steps:
            step(thing)

    return run


def remove(*names: str) -> Callable[[Path], object]:
    return lambda d: [(d / name).unlink() for name in names]


def prefixed(change: Callable[[str], str]) -> Callable[[Model], object]:
    return lambda model: model.rename(change)


def indexed(**entries: str) -> Callable[[Path], object]:
    names = {name.replace("__", "."): where for name, where in entries.items()}
    return lambda d: change_json(d / INDEX, lambda index: index["weight_map"].update(names))


def copy_of(name: str, where: int, value: bytes | None = None) -> Callable[[Path], None]:
    """Put a copy of a tensor into another shard, with a value of its own."""

    def change(directory: Path) -> None:
        source = directory / shard(3 - where, 2)
        header, start = safetensors_file.read_header(source)
        entry = header[name]
        first, last = entry["data_offsets"]
        data = source.read_bytes()[start + first : start + last]
        target = directory / shard(where, 2)
        entries, begin = safetensors_file.read_header(target)
        old = target.read_bytes()[begin:]
        entries[name] = {**entry, "data_offsets": [len(old), len(old) + len(data)]}
        target.write_bytes(safetensors_file.header_bytes(entries) + old + (value or data[:2]) + data[2:])

    return change


def whole_set(directory: Path, names: Callable[[int, int], str], total: int = 2) -> None:
    for number in range(1, total + 1):
        (directory / shard(number, total)).rename(directory / names(number, total))


def single(directory: Path, name: str = "model.safetensors", *, zeros: bool = False) -> None:
    """Write all tensors in one file beside the shards."""
    entries: dict[str, Any] = {}
    data = bytearray()
    for path in sorted(directory.glob("model-*.safetensors")):
        header, start = safetensors_file.read_header(path)
        content = path.read_bytes()[start:]
        for key, item in header.items():
            if key != "__metadata__":
                first, last = item["data_offsets"]
                entries[key] = {**item, "data_offsets": [len(data), len(data) + last - first]}
                data += content[first:last]
    (directory / name).write_bytes(safetensors_file.header_bytes(entries) + (bytes(len(data)) if zeros else data))


def only(directory: Path, name: str) -> None:
    single(directory, name)
    remove(shard(1, 2), shard(2, 2), INDEX)(directory)


def bom(*names: str) -> Callable[[Path], object]:
    return lambda d: [(d / n).write_bytes(b"\xef\xbb\xbf" + (d / n).read_bytes()) for n in names]


def lfs(name: str) -> Callable[[Path], object]:
    return lambda d: (d / name).write_bytes(LFS)


def pre_tokenizer(section: Any) -> Callable[[Path], object]:
    return lambda d: change_json(d / "tokenizer.json", lambda t: t.update(pre_tokenizer=section))


def buffers(model: Model) -> None:
    model.add("model.rotary_emb.inv_freq", np.ones(32, np.float32))
    model.add("model.layers.0.self_attn.rotary_emb.cos_cached", np.ones((16, 64), np.float32))
    model.add("model.layers.1.self_attn.rotary_emb.inv_freq", np.ones(32, np.float32))


def others(*names: str) -> Callable[[Model], object]:
    return lambda model: [model.add(name, np.ones(4, np.float32)) for name in names]


def biases(dtype: str, convert: Callable[[np.ndarray], np.ndarray]) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        for name, tensor in list(model.tensors.items()):
            if name.endswith("e_score_correction_bias"):
                values = np.array([6.82, 6.85, 6.90, 7.05], np.float32) if dtype == "BF16" else tensor.make()
                model.tensors[name] = Stored(name, dtype, tensor.shape, lambda values=values: convert(values))

    return change


def padded(rows: int, *names: str) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        for name in names:
            old = model.tensors[name]
            more = np.zeros((rows - old.shape[0], old.shape[1]), np.uint16)
            model.tensors[name] = Stored(
                name, old.dtype, (rows, old.shape[1]), lambda old=old, more=more: np.concatenate([old.make(), more])
            )

    return change


def stack(model: Model) -> None:
    """MLX's form: every projection of a layer's experts in one tensor."""
    before = "model.layers.1.mlp."
    for part in ("gate_proj", "up_proj", "down_proj"):
        held = [[model.tensors.pop(f"{before}experts.{e}.{part}.weight")] for e in range(4)]
        stack_of(model, f"{before}switch_mlp.{part}.weight", held)


def transposed(model: Model) -> None:
    fuse_experts(model, 1)
    for name in ("gate_up_proj", "down_proj"):
        full = f"model.layers.1.mlp.experts.{name}"
        old = model.tensors[full]
        shape = (old.shape[0], old.shape[2], old.shape[1])
        model.tensors[full] = Stored(full, old.dtype, shape, lambda old=old: old.make().swapaxes(1, 2))


def pair(model: Model) -> None:
    """gate and up of a dense layer and of shared experts in one matrix, as engines dump them."""
    for before in ("model.layers.0.mlp.", "model.layers.1.mlp.shared_experts."):
        gate, up = (model.tensors.pop(f"{before}{part}.weight") for part in ("gate_proj", "up_proj"))
        name = f"{before}gate_up_proj.weight"
        model.tensors[name] = Stored(
            name, gate.dtype, (2 * gate.shape[0], gate.shape[1]),
            lambda gate=gate, up=up: np.concatenate([gate.make(), up.make()]),
        )  # fmt: skip


def fused_fp8(model: Model) -> None:
    """A layer's FP8 experts with their scales."""
    before = "model.layers.1.mlp.experts."
    for suffix in ("", "_scale_inv"):
        held = [
            [model.tensors.pop(f"{before}{e}.{part}.weight{suffix}") for part in ("gate_proj", "up_proj")]
            for e in range(4)
        ]
        stack_of(model, f"{before}gate_up_proj{suffix}", held)
        downs = [[model.tensors.pop(f"{before}{e}.down_proj.weight{suffix}")] for e in range(4)]
        stack_of(model, f"{before}down_proj{suffix}", downs)


def units(model: Model) -> None:
    for name, tensor in list(model.tensors.items()):
        if name.endswith("layernorm.weight"):
            model.tensors[name] = Stored(name, tensor.dtype, (1, *tensor.shape), tensor.make)
        elif name.endswith("o_proj.weight"):
            model.tensors[name] = Stored(name, tensor.dtype, (*tensor.shape, 1, 1), tensor.make)


def unscaled(model: Model) -> None:
    """Weights cast from FP8 without their scales, which lie beside them."""
    codes = np.tile(np.array([448.0, 1.5, -0.25, 208.0], np.float32), 64)
    name = "model.layers.0.self_attn.o_proj.weight"
    shape = model.tensors[name].shape
    model.tensors[name] = Stored(name, "BF16", shape, lambda: numbers.to_bf16(np.tile(codes, (shape[0], 1))))
    model.add(f"{name}_scale_inv", np.ones((2, 2), np.float32))


def tied(values: str) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        model.config["tie_word_embeddings"] = True
        if values == "equal":
            old = model.tensors["model.embed_tokens.weight"]
            model.tensors["lm_head.weight"] = Stored("lm_head.weight", old.dtype, old.shape, old.make)

    return change


def without_shared(count: int | None) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        model.config["n_shared_experts"] = count
        model.tensors = {n: t for n, t in model.tensors.items() if ".shared_experts." not in n}

    return change


def dense(model: Model) -> None:
    fresh = base("v3", first_k_dense_replace=2, num_nextn_predict_layers=0)
    model.tensors = fresh.tensors
    model.config = fresh.config | {
        "n_routed_experts": None, "n_shared_experts": None, "num_experts_per_tok": None, "moe_intermediate_size": None,
        "topk_method": None, "n_group": None, "topk_group": None, "scoring_func": None, "first_k_dense_replace": None,
    }  # fmt: skip


def pruned(model: Model) -> None:
    model.config.update(n_group=2, topk_group=1, n_routed_experts=3)
    for layer in (1, 2):
        before = f"model.layers.{layer}.mlp."
        model.take(f"{before}experts.3.")
        for name in (f"{before}gate.weight", f"{before}gate.e_score_correction_bias"):
            if name in model.tensors:
                old = model.tensors[name]
                model.tensors[name] = Stored(name, old.dtype, (3, *old.shape[1:]), lambda old=old: old.make()[:3])


def scaling(**values: Any) -> Callable[[Model], None]:
    return lambda model: model.config.update(rope_scaling=values)


def take(*endings: str) -> Callable[[Model], None]:
    return lambda model: [model.take(ending) for ending in endings]


def contradicted(directory: Path) -> None:
    entry = {"content": "<other>", "special": True, "normalized": False}
    change_json(directory / "tokenizer_config.json", lambda c: c.update(added_tokens_decoder={"5": entry}))


def sub_folder(directory: Path) -> None:
    (directory / "weights").mkdir()
    for number in (1, 2):
        (directory / shard(number, 2)).rename(directory / "weights" / shard(number, 2))
    change_json(
        directory / INDEX,
        lambda index: index.update(weight_map={n: f"weights/{s}" for n, s in index["weight_map"].items()}),
    )


def adapter(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    safetensors_file.write(directory / "adapter_model.safetensors", [])


def lora_left(model: Model) -> None:
    model.rename(lambda n: "base_model.model." + n.replace("o_proj.weight", "o_proj.base_layer.weight"))
    model.add("base_model.model.model.layers.0.self_attn.o_proj.lora_A.default.weight", np.ones((8, 4), np.float32))


def pickled(directory: Path) -> None:
    for path in directory.glob("*.safetensors"):
        path.rename(directory / f"pytorch_{path.stem}.bin")
    (directory / INDEX).unlink()


def deepspeed(directory: Path) -> None:
    pickled(directory)
    (directory / "zero_to_fp32.py").write_text("")


def absent_mtp(directory: Path) -> None:
    (directory / shard(2, 2)).unlink()


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
DENSE_CT = {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"
MTP_HEADS = (MTP + "embed_tokens.weight", MTP + "shared_head.head.weight")
NEXTN = "blk.2.nextn.embed_tokens"

CASES: dict[str, Case] = {
    # A1: fused experts
    "A1": Case(lambda m: fuse_experts(m, 1), words=("fused", "gate_up_proj")),
    "A1 with .weight": Case(lambda m: fuse_experts(m, 1, up="gate_up_proj.weight", down="down_proj.weight")),
    "A1 engines' names": Case(lambda m: fuse_experts(m, 1, up="w13_weight", down="w2_weight")),
    "A1 MLX": Case(stack, words=("fused", "switch_mlp")),
    "A1 FP8 with scales": Case(fused_fp8, kind="v3fp8", words=("fused",)),
    "A1 gate and up of dense layers": Case(pair, words=("fused",)),
    "A1 transposed": Case(transposed, words=("columns as rows", "save_pretrained"), refused=True),
    # A2: damaged pre_tokenizer
    "A2": Case(files=pre_tokenizer(METASPACE), words=("saved again", "--pre deepseek-v3"), refused=True),
    "A2 with --pre": Case(files=pre_tokenizer(METASPACE), options=("--pre", "deepseek-v3"), words=("lost its pre_token",)),
    "A2 section lost": Case(files=pre_tokenizer(None), words=("--pre",), refused=True),
    "A2 in a sequence": Case(
        files=pre_tokenizer({"type": "Sequence", "pretokenizers": [METASPACE]}), options=("--pre", "deepseek-v3"),
        words=("Metaspace",),
    ),
    # A3, A4: a quantization that is not there
    "A3": Case(config(quantization_config=BNB), words=("bitsandbytes", "plain floats")),
    "A3 fp8 left by the cast": Case(config(quantization_config={"quant_method": "fp8"}), words=("fp8", "plain floats")),
    "A3 gptq": Case(config(quantization_config={"quant_method": "gptq", "bits": 4}), words=("gptq",)),
    "A3 in the text model": Case(
        both(config(quantization_config=None), lambda m: m.config.update(text_config={**m.config, "quantization_config": BNB})),
        words=("bitsandbytes",),
    ),
    "A4": Case(config(quantization_config=DENSE_CT), words=("compressed-tensors", "plain floats")),
    # A5: an index of an older version
    "A5": Case(files=lambda d: change_json(
        d / INDEX, lambda i: i["weight_map"].update({DOWN + "_scale_inv": shard(1, 2)})), words=("index", "scale_inv")),
    "A5 with the old section": Case(config(quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]}),
        lambda d: change_json(d / INDEX, lambda i: i["weight_map"].update({DOWN + "_scale_inv": shard(1, 2)})),
        words=("index", "plain floats")),
    "A5 scales in the shards": Case(lambda m: m.add(DOWN + "_scale_inv", np.ones((2, 2), np.float32)), words=("scales",)),
    "A5 buffers in the index": Case(files=lambda d: change_json(
        d / INDEX, lambda i: i["weight_map"].update({"model.rotary_emb.inv_freq": shard(1, 2)}))),
    "A5 cast without scales": Case(unscaled, words=("not yet multiplied", "o_proj"), refused=True),
    "A5 a weight that is in no shard": Case(files=lambda d: change_json(
        d / INDEX, lambda i: i["weight_map"].update({"model.other.weight": shard(1, 2)})),
        words=("does not hold it", "model.other.weight"), refused=True),
    # A6: twice
    "A6": Case(files=copy_of(NORM, 2), words=("copies", "same bytes")),
    "A6 other bytes": Case(files=copy_of(NORM, 2, b"\x12\x34"), words=("copies", "different bytes")),
    "A6 the copy first": Case(files=copy_of(MTP + "enorm.weight", 1, b"\x12\x34"), words=("different bytes",)),
    "A6 without an index": Case(files=both(copy_of(NORM, 2, b"\x12\x34"), remove(INDEX)), words=("--weights",), refused=True),
    "A6 equal without an index": Case(files=both(copy_of(NORM, 2), remove(INDEX)), words=("same bytes",)),
    # A7: numbered without index
    "A7": Case(files=remove(INDEX), words=("index", "complete set")),
    "A7 one of one": Case(files=lambda d: only(d, "model-00001-of-00001.safetensors"), words=("index",)),
    "A7 another stem": Case(files=both(lambda d: whole_set(d, lambda n, t: f"pytorch_model-{n:05d}-of-{t:05d}.safetensors"),
        remove(INDEX))),
    "A7 incomplete": Case(files=remove(INDEX, shard(1, 2)), words=(shard(1, 2), "missing"), refused=True),
    "A7 Axolotl's": Case(files=lambda d: only(d, "model_0.safetensors"), words=("model_0.safetensors",)),
    "A7 without total": Case(files=both(lambda d: whole_set(d, lambda n, _: f"model_{n}.safetensors"), remove(INDEX)),
        words=("--weights",), refused=True),
    "A7 without total, named": Case(files=both(lambda d: whole_set(d, lambda n, _: f"model_{n}.safetensors"), remove(INDEX)),
        options=("--weights", "model_*.safetensors"), words=("--weights",)),
    # A8: two versions
    "A8": Case(files=both(lambda d: single(d, zeros=True), remove(INDEX)), words=("twice", "--weights"), refused=True),
    "A8 named": Case(files=both(lambda d: single(d, zeros=True), remove(INDEX)), options=("--weights", "model-*-of-*"),
        words=("--weights",)),
    "A8 beside an index": Case(files=lambda d: single(d, zeros=True), words=("--weights",), refused=True),
    "A8 an index of files that are gone": Case(files=both(single, remove(shard(1, 2), shard(2, 2))), words=("none of which",)),
    "A8 saved anew in fewer shards": Case(files=both(lambda d: whole_set(d, lambda n, t: shard(n, t).replace("model-", "new-")),
        ), words=("none of which", "new-00001")),
    # A9: what nobody wants is missing
    "A9": Case(files=absent_mtp, kind="v32", options=("--no-mtp",), other=("blk.2.",)),
    "A9 wanted": Case(files=absent_mtp, kind="v32", words=(shard(2, 2), "missing"), refused=True),
    "A9 a family without": Case(files=absent_mtp),
    "A9 another shard": Case(files=remove(shard(1, 2)), words=(shard(1, 2), "missing"), options=("--no-mtp",), refused=True),
    # A10: prefixes
    "A10": Case(prefixed(lambda n: n.replace("model.", "model.language_model.", 1)), words=("prefix", "model.language_model.")),
    "A10 module.": Case(prefixed(lambda n: "module." + n), words=("module.",)),
    "A10 base_model": Case(prefixed(lambda n: "base_model.model." + n), words=("base_model",)),
    "A10 compiled": Case(prefixed(lambda n: "_orig_mod." + n), words=("_orig_mod",)),
    "A10 FSDP in the middle": Case(prefixed(lambda n: n.replace("self_attn.", "_fsdp_wrapped_module.self_attn.")),
        words=("_fsdp_wrapped_module",)),
    "A10 base_layer": Case(prefixed(lambda n: n.replace("o_proj.weight", "o_proj.base_layer.weight")), words=("base_layer",)),
    "A10 the body alone": Case(both(take("lm_head.weight"), config(tie_word_embeddings=True),
        prefixed(lambda n: n.removeprefix("model."))), words=("without",), same=False),
    "A10 published": Case(prefixed(lambda n: "language_model." + n), silent=("prefix",)),
    "A10 two models": Case(lambda m: m.tensors.update({f"ema.{n}": Stored(f"ema.{n}", t.dtype, t.shape, t.make)
        for n, t in list(m.tensors.items())}), words=("--prefix", "ema."), refused=True),
    "A10 two models, named": Case(lambda m: m.tensors.update({f"ema.{n}": Stored(f"ema.{n}", t.dtype, t.shape, t.make)
        for n, t in list(m.tensors.items())}), options=("--prefix", "model."),),
    "A10 unknown by the hundred": Case(others(*(f"vit.blocks.{n}.w.{k}" for n in range(50) for k in range(8))),
        words=("400 tensors", "vit.blocks.N.w.N", "for example"), refused=True),
    # A11: buffers
    "A11": Case(buffers),
    "A11 masks": Case(others("model.layers.0.self_attn.masked_bias", "model.position_ids")),
    "A11 scales of the cache": Case(others("model.layers.0.self_attn.k_scale", "model.layers.0.self_attn.v_scale")),
    "A11 optimizer": Case(others("optimizer.state.0.exp_avg", "model.layers.0.mlp.down_proj._extra_state")),
    "A11 value head": Case(others("v_head.summary.weight", "v_head.summary.bias")),
    # A12: byte-order marks
    "A12": Case(files=bom("config.json", "tokenizer.json", "tokenizer_config.json", INDEX)),
    "A12 UTF-16": Case(files=lambda d: (d / "config.json").write_bytes((d / "config.json").read_text().encode("utf-16")),
        words=("UTF-16", "UTF-8"), refused=True),
    "A12 in a model card": Case(files=lambda d: (d / "README.md").write_bytes(b"\xef\xbb\xbf---\nlicense: mit\n---\n")),
    # A13: architectures
    "A13": Case(config(architectures=None), words=("architecture", "DeepseekV3ForCausalLM")),
    "A13 empty": Case(config(architectures=[]), words=("DeepseekV3ForCausalLM",)),
    "A13 the bare model": Case(config(architectures=["DeepseekV3Model"]), words=("DeepseekV3ForCausalLM",)),
    "A13 FSDP": Case(config(architectures=["FSDPDeepseekV3ForCausalLM"]), words=("DeepseekV3ForCausalLM",)),
    "A13 kimi": Case(config(architectures=None, model_type="kimi_k2"), words=("DeepseekV3ForCausalLM",)),
    "A13 v32": Case(config(architectures=None), kind="v32", words=("DeepseekV32ForCausalLM",)),
    "A13 nothing says it": Case(config(architectures=None, model_type=None), words=("architecture",), refused=True),
    # A14: something else in a file's place
    "A14": Case(files=lfs(shard(1, 2)), words=("Git LFS pointer", "git lfs pull"), refused=True),
    "A14 tokenizer": Case(files=lfs("tokenizer.json"), words=("Git LFS pointer", "tokenizer.json"), refused=True),
    "A14 index": Case(files=lfs(INDEX), words=("Git LFS pointer",), refused=True),
    "A14 web page": Case(files=lambda d: (d / shard(1, 2)).write_bytes(b"<!DOCTYPE html><html>" + b" " * 200),
        words=("web page",), refused=True),
    "A14 zip": Case(files=lambda d: (d / shard(1, 2)).write_bytes(b"PK\x03\x04" + b"x" * 200), words=("zip",), refused=True),
    # A15: adapters
    "A15": Case(files=adapter, words=("LoRA adapter", "Merge"), refused=True),
    "A15 unmerged": Case(lora_left, words=("not merged", "lora_A", "Merge"), refused=True),
    "A15 beside a model": Case(files=lambda d: (d / "adapter_config.json").write_text("{}")),
    "A15 pickled weights": Case(files=pickled, words=("pickle", "safetensors"), refused=True),
    "A15 DeepSpeed": Case(files=deepspeed, words=("DeepSpeed", "zero_to_fp32"), refused=True),
    # A16: the output matrix
    "A16": Case(take("lm_head.weight"), words=("lm_head.weight", "tie_word_embeddings=true"), refused=True),
    "A16 set": Case(take("lm_head.weight"), options=("--set", "tie_word_embeddings=true"), other=("output.weight",)),
    "A16 tied, equal": Case(tied("equal"), other=("output.weight",), silent=("tied head",)),
    "A16 tied, different": Case(tied("different"), words=("tied head", "kept")),
    # A17: padded vocabularies
    "A17": Case(padded(2112, "model.embed_tokens.weight", "lm_head.weight"), kind="v32",
        words=("64 rows more", "--pad-vocab", "vocab_size=2112"), refused=True),
    "A17 --pad-vocab": Case(padded(2112, "model.embed_tokens.weight", "lm_head.weight"), kind="v32",
        options=("--pad-vocab",), words=("--no-mtp", MTP + "embed_tokens"), refused=True),
    "A17 both": Case(padded(2112, "model.embed_tokens.weight", "lm_head.weight"), kind="v32",
        options=("--pad-vocab", "--no-mtp"), other=("token_embd", "output.weight", "blk.2.")),
    "A17 set": Case(padded(2112, "model.embed_tokens.weight", "lm_head.weight"), options=("--set", "vocab_size=2112"),
        other=("token_embd", "output.weight")),
    "A17 all padded": Case(padded(2112, "model.embed_tokens.weight", "lm_head.weight", *MTP_HEADS), kind="v32",
        options=("--pad-vocab",), other=("token_embd", "output.weight", "embed_tokens", "shared_head_head")),
    "A17 fewer rows": Case(config(vocab_size=4096), words=("2048 rows fewer", "vocab_size=2048"), refused=True),
    # A18 is about names, see test_names
    # A19, A20: types of biases
    "A19": Case(biases("BF16", numbers.to_bf16), words=("routing bias", "F32", "original"), other=("exp_probs_b",)),
    "A19 F16": Case(biases("F16", lambda x: x.astype(np.float16)), words=("routing bias", "F16"), other=("exp_probs_b",)),
    "A20": Case(biases("F64", lambda x: x.astype(np.float64)), words=("double", "F64")),
    "A20 a matrix": Case(lambda m: m.tensors.update({NORM: Stored(NORM, "F64", (256,), lambda old=m.tensors[NORM]: (
        old.make().astype(np.uint32) << 16).view(np.float32).astype(np.float64))}), words=("double",)),
    "A20 attention biases": Case(both(config(attention_bias=True), others("model.layers.0.self_attn.q_a_proj.bias")),
        words=("attention_bias", "q_a_proj.bias"), refused=True),
    "A20 flag without biases": Case(config(attention_bias=True)),
    # A21: sub-folders
    "A21": Case(files=sub_folder),
    "A21 upwards": Case(files=lambda d: change_json(d / INDEX, lambda i: i["weight_map"].update({NORM: f"a/../{shard(1, 2)}"})),
        words=("outside the directory",), refused=True),
    "A21 missing in it": Case(files=lambda d: change_json(d / INDEX, lambda i: i["weight_map"].update({NORM: "a/b.safetensors"})),
        words=("a/b.safetensors", "missing"), refused=True),
    # A22: added tokens
    "A22": Case(files=contradicted, words=("added_tokens_decoder", "tokenizer.json")),
    "A22 two ids": Case(files=lambda d: change_json(d / "tokenizer_config.json", lambda c: c.update(added_tokens_decoder={
        "2040": {"content": "<｜begin▁of▁sentence｜>", "special": True}})), words=("added_tokens_decoder",)),
    # unit dimensions
    "units": Case(units, words=("unit dimensions",)),
    # B1: prediction that shares
    "B1": Case(take(*MTP_HEADS), kind="v32", other=("nextn.embed_tokens", "nextn.shared_head_head")),
    "B1 GLM": Case(take(*MTP_HEADS), kind="glm-lite", other=("nextn.embed_tokens", "nextn.shared_head_head")),
    "B1 without indexer": Case(take(MTP + "self_attn.indexer."), kind="v32", other=("blk.2.indexer",)),
    "B1 glm-dsa": Case(take(MTP + "self_attn.indexer.", *MTP_HEADS), kind="glm-dsa",
        other=("blk.2.indexer", "nextn.embed_tokens", "nextn.shared_head_head")),
    "B1 half an indexer": Case(take(MTP + "self_attn.indexer.wk.weight"), kind="v32", words=("indexer.wk",), refused=True),
    # B2: no shared experts, no experts
    "B2": Case(without_shared(0), words=("shared experts", "zeros"), other=("_shexp",)),
    "B2 null": Case(without_shared(None), words=("zeros",), other=("_shexp",)),
    "B2 dense": Case(dense, same=False),
    "B2 counted but not there": Case(without_shared(1), words=("shared_experts", "missing"), refused=True),
    # B3: pruned groups
    "B3": Case(pruned, words=("n_group", "--set n_group=1"), refused=True),
    "B3 set": Case(pruned, options=("--set", "n_group=1", "--set", "topk_group=1"), same=False),
    # B4: positions
    "B4": Case(scaling(type="yarn", factor=40, original_max_position_embeddings=4096),
        words=("mscale", "--set rope_scaling.mscale=1", "1.87"), refused=True),
    "B4 set": Case(scaling(type="yarn", factor=40, original_max_position_embeddings=4096),
        options=("--set", "rope_scaling.mscale=1", "--set", "rope_scaling.mscale_all_dim=1")),
    "B4 linear": Case(scaling(type="linear", factor=4.0)),
    "B4 dynamic": Case(scaling(type="dynamic", factor=4.0), words=("dynamic",), refused=True),
}  # fmt: skip


def told(case: Case, directory: Path) -> str:
    """What the program makes of a case: a plan's warnings, or the error."""
    answer = gguf_mla(
        "convert", directory, directory.parent / "out.gguf", "--type", "BF16", "--dry-run", "--json", *case.options
    )
    if answer.status:
        return answer.output.strip()
    plan = json.loads(answer.output)
    return "converts; " + " ".join(plan["warnings"]) + (f" dropped {len(plan['dropped'])}" if plan["dropped"] else "")


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for name, case in CASES.items():
        place = root / "case"
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(place)
        case.write(place)
        print(f"{name:34} {'refused' if case.refused else 'reads':8} {told(case, place)[:400]}", flush=True)
