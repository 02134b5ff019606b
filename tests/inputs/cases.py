"""What people really have, a case each: a checkpoint that a tool has left, and what is right for it.

`python -m tests.inputs DIRECTORY` prints what becomes of every one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.synthetic import numbers
from tests.inputs.changes import (
    absent_mtp,
    adapter,
    biases,
    bom,
    both,
    buffers,
    config,
    contradicted,
    copy_of,
    deepspeed,
    dense,
    fused_fp8,
    lfs,
    lora_left,
    only,
    others,
    padded,
    pair,
    pickled,
    pre_tokenizer,
    prefixed,
    pruned,
    remove,
    scaling,
    single,
    stack,
    sub_folder,
    take,
    tied,
    transposed,
    units,
    unscaled,
    whole_set,
    without_shared,
)
from tests.inputs.workshop import INDEX, Model, base, change_json, fuse_experts, shard
from tests.support.safetensors_file import Stored

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MTP = "model.layers.2."


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


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
DENSE_CT = {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"
YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
MTP_HEADS = (MTP + "embed_tokens.weight", MTP + "shared_head.head.weight")
NEXTN = "blk.2.nextn.embed_tokens"

CASES: dict[str, Case] = {
    # A1, fused experts
    "A1": Case(lambda m: fuse_experts(m, 1), words=("fused", "gate_up_proj")),
    "A1 with .weight": Case(lambda m: fuse_experts(m, 1, up="gate_up_proj.weight", down="down_proj.weight")),
    "A1 engines' names": Case(lambda m: fuse_experts(m, 1, up="w13_weight", down="w2_weight")),
    "A1 MLX": Case(stack, words=("fused", "switch_mlp")),
    "A1 FP8 with scales": Case(fused_fp8, kind="v3fp8", words=("fused",)),
    "A1 gate and up of dense layers": Case(pair, words=("fused",)),
    "A1 transposed": Case(transposed, words=("columns as rows", "save_pretrained"), refused=True),
    # A2, damaged pre_tokenizer
    "A2": Case(files=pre_tokenizer(METASPACE), words=("saved again", "--pre deepseek-v3"), refused=True),
    "A2 with --pre": Case(
        files=pre_tokenizer(METASPACE), options=("--pre", "deepseek-v3"), words=("lost its pre_token",)
    ),
    "A2 section lost": Case(files=pre_tokenizer(None), words=("--pre",), refused=True),
    "A2 in a sequence": Case(
        files=pre_tokenizer({"type": "Sequence", "pretokenizers": [METASPACE]}),
        options=("--pre", "deepseek-v3"),
        words=("Metaspace",),
    ),
    # A3, A4, a quantization that is not there
    "A3": Case(config(quantization_config=BNB), words=("bitsandbytes", "plain floats")),
    "A3 fp8 left by the cast": Case(config(quantization_config={"quant_method": "fp8"}), words=("fp8", "plain floats")),
    "A3 gptq": Case(config(quantization_config={"quant_method": "gptq", "bits": 4}), words=("gptq",)),
    "A3 in the text model": Case(
        both(
            config(quantization_config=None),
            lambda m: m.config.update(text_config={**m.config, "quantization_config": BNB}),
        ),
        words=("bitsandbytes",),
    ),
    "A4": Case(config(quantization_config=DENSE_CT), words=("compressed-tensors", "plain floats")),
    # A5, an index of an older version
    "A5": Case(
        files=lambda d: change_json(d / INDEX, lambda i: i["weight_map"].update({DOWN + "_scale_inv": shard(1, 2)})),
        words=("index", "scale_inv"),
    ),
    "A5 with the old section": Case(
        config(quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]}),
        lambda d: change_json(d / INDEX, lambda i: i["weight_map"].update({DOWN + "_scale_inv": shard(1, 2)})),
        words=("index", "plain floats"),
    ),
    "A5 scales in the shards": Case(
        lambda m: m.add(DOWN + "_scale_inv", np.ones((2, 2), np.float32)), words=("scales",)
    ),
    "A5 buffers in the index": Case(
        files=lambda d: change_json(
            d / INDEX, lambda i: i["weight_map"].update({"model.rotary_emb.inv_freq": shard(1, 2)})
        )
    ),
    "A5 cast without scales": Case(unscaled, words=("not yet multiplied", "o_proj"), refused=True),
    "A5 a weight that is in no shard": Case(
        files=lambda d: change_json(d / INDEX, lambda i: i["weight_map"].update({"model.other.weight": shard(1, 2)})),
        words=("does not hold it", "model.other.weight"),
        refused=True,
    ),
    # A6, twice
    "A6": Case(files=copy_of(NORM, 2), words=("copies", "same bytes")),
    "A6 other bytes": Case(files=copy_of(NORM, 2, b"\x12\x34"), words=("copies", "different bytes")),
    "A6 the copy first": Case(files=copy_of(MTP + "enorm.weight", 1, b"\x12\x34"), words=("different bytes",)),
    "A6 without an index": Case(
        files=both(copy_of(NORM, 2, b"\x12\x34"), remove(INDEX)), words=("--weights",), refused=True
    ),
    "A6 equal without an index": Case(files=both(copy_of(NORM, 2), remove(INDEX)), words=("same bytes",)),
    # A7, numbered without index
    "A7": Case(files=remove(INDEX), words=("index", "complete set")),
    "A7 one of one": Case(files=lambda d: only(d, "model-00001-of-00001.safetensors"), words=("index",)),
    "A7 another stem": Case(
        files=both(lambda d: whole_set(d, lambda n, t: f"pytorch_model-{n:05d}-of-{t:05d}.safetensors"), remove(INDEX))
    ),
    "A7 incomplete": Case(files=remove(INDEX, shard(1, 2)), words=(shard(1, 2), "missing"), refused=True),
    "A7 Axolotl's": Case(files=lambda d: only(d, "model_0.safetensors"), words=("model_0.safetensors",)),
    "A7 without total": Case(
        files=both(lambda d: whole_set(d, lambda n, _: f"model_{n}.safetensors"), remove(INDEX)),
        words=("--weights",),
        refused=True,
    ),
    "A7 without total, named": Case(
        files=both(lambda d: whole_set(d, lambda n, _: f"model_{n}.safetensors"), remove(INDEX)),
        options=("--weights", "model_*.safetensors"),
        words=("--weights",),
    ),
    # A8, two versions
    "A8": Case(
        files=both(lambda d: single(d, zeros=True), remove(INDEX)), words=("there twice", "--weights"), refused=True
    ),
    "A8 named": Case(
        files=both(lambda d: single(d, zeros=True), remove(INDEX)),
        options=("--weights", "model-*-of-*"),
        words=("--weights",),
    ),
    "A8 beside an index": Case(files=lambda d: single(d, zeros=True), words=("--weights",), refused=True),
    "A8 an index of files that are gone": Case(
        files=both(single, remove(shard(1, 2), shard(2, 2))), words=("none of which",)
    ),
    "A8 saved anew in fewer shards": Case(
        files=both(
            lambda d: whole_set(d, lambda n, t: shard(n, t).replace("model-", "new-")),
        ),
        words=("none of which", "new-00001"),
    ),
    # A9, what nobody wants is missing
    "A9": Case(files=absent_mtp, kind="v32", options=("--no-mtp",), other=("blk.2.",)),
    "A9 wanted": Case(files=absent_mtp, kind="v32", words=(shard(2, 2), "missing"), refused=True),
    "A9 a family without": Case(files=absent_mtp),
    "A9 another shard": Case(
        files=remove(shard(1, 2)), words=(shard(1, 2), "missing"), options=("--no-mtp",), refused=True
    ),
    # A10, prefixes
    "A10": Case(
        prefixed(lambda n: n.replace("model.", "model.language_model.", 1)), words=("prefix", "model.language_model.")
    ),
    "A10 module.": Case(prefixed(lambda n: "module." + n), words=("module.",)),
    "A10 base_model": Case(prefixed(lambda n: "base_model.model." + n), words=("base_model",)),
    "A10 compiled": Case(prefixed(lambda n: "_orig_mod." + n), words=("_orig_mod",)),
    "A10 FSDP in the middle": Case(
        prefixed(lambda n: n.replace("self_attn.", "_fsdp_wrapped_module.self_attn.")), words=("_fsdp_wrapped_module",)
    ),
    "A10 base_layer": Case(
        prefixed(lambda n: n.replace("o_proj.weight", "o_proj.base_layer.weight")), words=("base_layer",)
    ),
    "A10 the body alone": Case(
        both(take("lm_head.weight"), config(tie_word_embeddings=True), prefixed(lambda n: n.removeprefix("model."))),
        words=("without",),
        same=False,
    ),
    "A10 published": Case(prefixed(lambda n: "language_model." + n), silent=("prefix",)),
    "A10 two models": Case(
        lambda m: m.tensors.update(
            {f"ema.{n}": Stored(f"ema.{n}", t.dtype, t.shape, t.make) for n, t in list(m.tensors.items())}
        ),
        words=("--prefix", "ema."),
        refused=True,
    ),
    "A10 two models, named": Case(
        lambda m: m.tensors.update(
            {f"ema.{n}": Stored(f"ema.{n}", t.dtype, t.shape, t.make) for n, t in list(m.tensors.items())}
        ),
        options=("--prefix", "model."),
    ),
    "A10 unknown by the hundred": Case(
        others(*(f"vit.blocks.{n}.w.{k}" for n in range(50) for k in range(8))),
        words=("400 tensors", "vit.blocks.N.w.N", "for example"),
        refused=True,
    ),
    # A11, buffers
    "A11": Case(buffers),
    "A11 masks": Case(others("model.layers.0.self_attn.masked_bias", "model.position_ids")),
    "A11 scales of the cache": Case(others("model.layers.0.self_attn.k_scale", "model.layers.0.self_attn.v_scale")),
    "A11 scales of activations": Case(others("model.layers.1.mlp.experts.w13_input_scale")),
    "A11 optimizer": Case(others("optimizer.state.0.exp_avg", "model.layers.0.mlp.down_proj._extra_state")),
    "A11 value head": Case(others("v_head.summary.weight", "v_head.summary.bias")),
    # A12, byte-order marks
    "A12": Case(files=bom("config.json", "tokenizer.json", "tokenizer_config.json", INDEX)),
    "A12 UTF-16": Case(
        files=lambda d: (d / "config.json").write_bytes((d / "config.json").read_text().encode("utf-16")),
        words=("UTF-16", "UTF-8"),
        refused=True,
    ),
    "A12 in a model card": Case(files=lambda d: (d / "README.md").write_bytes(b"\xef\xbb\xbf---\nlicense: mit\n---\n")),
    # A13, architectures
    "A13": Case(config(architectures=None), words=("architecture", "DeepseekV3ForCausalLM")),
    "A13 empty": Case(config(architectures=[]), words=("DeepseekV3ForCausalLM",)),
    "A13 the bare model": Case(config(architectures=["DeepseekV3Model"]), words=("DeepseekV3ForCausalLM",)),
    "A13 FSDP": Case(config(architectures=["FSDPDeepseekV3ForCausalLM"]), words=("DeepseekV3ForCausalLM",)),
    "A13 kimi": Case(config(architectures=None, model_type="kimi_k2"), words=("DeepseekV3ForCausalLM",)),
    "A13 v32": Case(config(architectures=None), kind="v32", words=("DeepseekV32ForCausalLM",)),
    "A13 nothing says it": Case(config(architectures=None, model_type=None), words=("architecture",), refused=True),
    # A14, something else in a file's place
    "A14": Case(files=lfs(shard(1, 2)), words=("Git LFS pointer", "git lfs pull"), refused=True),
    "A14 tokenizer": Case(files=lfs("tokenizer.json"), words=("Git LFS pointer", "tokenizer.json"), refused=True),
    "A14 index": Case(files=lfs(INDEX), words=("Git LFS pointer",), refused=True),
    "A14 web page": Case(
        files=lambda d: (d / shard(1, 2)).write_bytes(b"<!DOCTYPE html><html>" + b" " * 200),
        words=("web page",),
        refused=True,
    ),
    "A14 zip": Case(
        files=lambda d: (d / shard(1, 2)).write_bytes(b"PK\x03\x04" + b"x" * 200), words=("zip",), refused=True
    ),
    # A15, adapters
    "A15": Case(files=adapter, words=("LoRA adapter", "Merge"), refused=True),
    "A15 unmerged": Case(lora_left, words=("not merged", "lora_A", "Merge"), refused=True),
    "A15 beside a model": Case(files=lambda d: (d / "adapter_config.json").write_text("{}")),
    "A15 pickled weights": Case(files=pickled, words=("pickle", "safetensors"), refused=True),
    "A15 DeepSpeed": Case(files=deepspeed, words=("DeepSpeed", "zero_to_fp32"), refused=True),
    # A16, the output matrix
    "A16": Case(take("lm_head.weight"), words=("lm_head.weight", "tie_word_embeddings=true"), refused=True),
    "A16 set": Case(take("lm_head.weight"), options=("--set", "tie_word_embeddings=true"), other=("output.weight",)),
    "A16 tied, equal": Case(tied("equal"), other=("output.weight",), silent=("tied head",)),
    "A16 tied, different": Case(tied("different"), words=("tied head", "kept")),
    # A17, padded vocabularies
    "A17": Case(
        padded(2112, "model.embed_tokens.weight", "lm_head.weight"),
        kind="v32",
        words=("64 rows more", "--pad-vocab", "vocab_size=2112"),
        refused=True,
    ),
    "A17 --pad-vocab": Case(
        padded(2112, "model.embed_tokens.weight", "lm_head.weight"),
        kind="v32",
        options=("--pad-vocab",),
        words=("--no-mtp", MTP + "embed_tokens"),
        refused=True,
    ),
    "A17 both": Case(
        padded(2112, "model.embed_tokens.weight", "lm_head.weight"),
        kind="v32",
        options=("--pad-vocab", "--no-mtp"),
        other=("token_embd", "output.weight", "blk.2."),
    ),
    "A17 set": Case(
        padded(2112, "model.embed_tokens.weight", "lm_head.weight"),
        options=("--set", "vocab_size=2112"),
        other=("token_embd", "output.weight"),
    ),
    "A17 all padded": Case(
        padded(2112, "model.embed_tokens.weight", "lm_head.weight", *MTP_HEADS),
        kind="v32",
        options=("--pad-vocab",),
        other=("token_embd", "output.weight", "embed_tokens", "shared_head_head"),
    ),
    "A17 fewer rows": Case(config(vocab_size=4096), words=("2048 rows fewer", "vocab_size=2048"), refused=True),
    # A18 is about names, see test_names
    # A19, A20, types of biases
    "A19": Case(biases("BF16", numbers.to_bf16), words=("routing bias", "F32", "original"), other=("exp_probs_b",)),
    "A19 F16": Case(
        biases("F16", lambda x: x.astype(np.float16)), words=("routing bias", "F16"), other=("exp_probs_b",)
    ),
    "A20": Case(biases("F64", lambda x: x.astype(np.float64)), words=("double", "F64")),
    "A20 a matrix": Case(
        lambda m: m.tensors.update(
            {
                NORM: Stored(
                    NORM,
                    "F64",
                    (256,),
                    lambda old=m.tensors[NORM]: (
                        (old.make().astype(np.uint32) << 16).view(np.float32).astype(np.float64)
                    ),
                )
            }
        ),
        words=("double",),
    ),
    "A20 attention biases": Case(
        both(config(attention_bias=True), others("model.layers.0.self_attn.q_a_proj.bias")),
        words=("attention_bias", "q_a_proj.bias"),
        refused=True,
    ),
    "A20 flag without biases": Case(config(attention_bias=True)),
    # A21, sub-folders
    "A21": Case(files=sub_folder),
    "A21 upwards": Case(
        files=lambda d: change_json(d / INDEX, lambda i: i["weight_map"].update({NORM: f"a/../{shard(1, 2)}"})),
        words=("outside the directory",),
        refused=True,
    ),
    "A21 missing in it": Case(
        files=lambda d: change_json(d / INDEX, lambda i: i["weight_map"].update({NORM: "a/b.safetensors"})),
        words=("a/b.safetensors", "missing"),
        refused=True,
    ),
    # A22, added tokens
    "A22": Case(files=contradicted, words=("added_tokens_decoder", "tokenizer.json")),
    "A22 two ids": Case(
        files=lambda d: change_json(
            d / "tokenizer_config.json",
            lambda c: c.update(added_tokens_decoder={"2040": {"content": "<｜begin▁of▁sentence｜>", "special": True}}),
        ),
        words=("added_tokens_decoder",),
    ),
    # unit dimensions
    "units": Case(units, words=("unit dimensions",)),
    # B1, prediction that shares
    "B1": Case(take(*MTP_HEADS), kind="v32", other=("nextn.embed_tokens", "nextn.shared_head_head")),
    "B1 GLM": Case(take(*MTP_HEADS), kind="glm-lite", other=("nextn.embed_tokens", "nextn.shared_head_head")),
    "B1 without indexer": Case(take(MTP + "self_attn.indexer."), kind="v32", other=("blk.2.indexer",)),
    "B1 glm-dsa": Case(
        take(MTP + "self_attn.indexer.", *MTP_HEADS),
        kind="glm-dsa",
        other=("blk.2.indexer", "nextn.embed_tokens", "nextn.shared_head_head"),
    ),
    "B1 half an indexer": Case(
        take(MTP + "self_attn.indexer.wk.weight"), kind="v32", words=("indexer.wk",), refused=True
    ),
    # B2, no shared experts, no experts
    "B2": Case(without_shared(0), words=("shared experts", "zeros"), other=("_shexp",)),
    "B2 null": Case(without_shared(None), words=("zeros",), other=("_shexp",)),
    "B2 dense": Case(dense, same=False),
    "B2 counted but not there": Case(without_shared(1), words=("shared_experts", "missing"), refused=True),
    # B3, pruned groups
    "B3": Case(pruned, words=("n_group", "--set n_group=1"), refused=True),
    "B3 set": Case(pruned, options=("--set", "n_group=1", "--set", "topk_group=1"), same=False),
    # B4, positions
    "B4": Case(scaling(**YARN), words=("YaRN", "attn_factor")),
    "B4 one mscale": Case(
        scaling(**YARN, mscale_all_dim=1), words=("mscale missing", "two ways", "--set rope_sc"), refused=True
    ),
    "B4 set": Case(
        scaling(**YARN), options=("--set", "rope_scaling.mscale=1", "--set", "rope_scaling.mscale_all_dim=1")
    ),
    "B4 linear": Case(scaling(type="linear", factor=4.0)),
    "B4 dynamic": Case(scaling(type="dynamic", factor=4.0), words=("dynamic",), refused=True),
}
