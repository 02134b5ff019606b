"""Small DeepSeek-V4 checkpoints in each form that is published: FP8 with 4-bit experts, -Base, plain, and fused names.

Written anew, not with the product's own tables: names and storage as in the published shards and in transformers.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from gguf_mla.synthetic import numbers
from tests.support import hub
from tests.support.safetensors_file import Stored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Config = dict[str, Any]
FLASH: Config = {
    "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1, "expert_dtype": "fp4", "hc_eps": 1e-6, "hc_mult": 4,
    "hc_sinkhorn_iters": 20, "head_dim": 256, "hidden_act": "silu", "hidden_size": 256, "index_head_dim": 128,
    "index_n_heads": 32, "index_topk": 8, "initializer_range": 0.02, "max_position_embeddings": 1048576,
    "moe_intermediate_size": 256, "n_routed_experts": 8, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 4, "num_experts_per_tok": 3, "num_hash_layers": 3, "num_hidden_layers": 6,
    "num_key_value_heads": 1, "num_nextn_predict_layers": 1, "o_groups": 2, "o_lora_rank": 128, "q_lora_rank": 256,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000, "compress_rope_theta": 160000,
    "rope_scaling": {
        "type": "yarn", "factor": 16, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1,
    },
    "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus", "sliding_window": 16, "swiglu_limit": 1.0,
    "tie_word_embeddings": False, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "use_cache": True,
    "vocab_size": 2048, "compress_ratios": [0, 0, 4, 128, 4, 0, 0],
    "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
}  # fmt: skip
PRO: Config = {
    **FLASH, "num_attention_heads": 8, "o_groups": 4, "num_hash_layers": 2, "routed_scaling_factor": 2.5,
    "compress_ratios": [128, 128, 4, 128, 4, 128, 0], "index_topk": 16, "index_n_heads": 16, "index_head_dim": 64,
}  # fmt: skip
BASE: Config = {key: value for key, value in FLASH.items() if key != "expert_dtype"}
PLAIN: Config = {key: value for key, value in FLASH.items() if key not in {"expert_dtype", "quantization_config"}}
KINDS = {"v4-flash": FLASH, "v4-pro": PRO, "v4-base": BASE, "v4-plain": PLAIN}

FP8 = ("attn.wq_a", "attn.wq_b", "attn.wkv", "attn.wo_a", "attn.wo_b", "attn.indexer.wq_b", "e_proj", "h_proj")
EXPERTS = (".w1", ".w2", ".w3")
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


@dataclass(frozen=True)
class Weight:
    """A tensor by its published name, with the deviation and mean of its values; `f32` is always stored so."""

    name: str
    shape: tuple[int, ...]
    deviation: float
    mean: float = 0.0
    f32: bool = False

    def values(self, seed: int) -> np.ndarray:
        return numbers.bell(self.name, seed, self.shape) * np.float32(self.deviation) + np.float32(self.mean)


def weights(config: Config) -> Iterator[Weight]:
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    yield Weight("embed.weight", (vocabulary, hidden), 1.0)
    for layer in range(config["num_hidden_layers"]):
        yield from _layer(config, layer, f"layers.{layer}.")
    yield from _streams(config, "hc_head_", 4, 1)
    yield _norm("norm.weight", hidden)
    yield Weight("head.weight", (vocabulary, hidden), 2.5 / math.sqrt(hidden))
    if config["num_nextn_predict_layers"]:
        yield from _layer(config, config["num_hidden_layers"], "mtp.0.")
        yield _linear("mtp.0.e_proj.weight", hidden, hidden)
        yield _linear("mtp.0.h_proj.weight", hidden, hidden)
        yield from (_norm(f"mtp.0.{name}.weight", hidden) for name in ("enorm", "hnorm", "norm"))
        yield from _streams(config, "mtp.0.hc_head_", 4, 1)


def _streams(config: Config, prefix: str, mixes: int, parts: int) -> Iterator[Weight]:
    wide = config["hc_mult"] * config["hidden_size"]
    yield Weight(prefix + "fn", (mixes, wide), 1 / math.sqrt(wide), f32=True)
    yield Weight(prefix + "base", (mixes,), 0.5, f32=True)
    yield Weight(prefix + "scale", (parts,), 0.3, 1.0, f32=True)


def _layer(config: Config, layer: int, at: str) -> Iterator[Weight]:
    hidden, heads, head = config["hidden_size"], config["num_attention_heads"], config["head_dim"]
    rank, rows = config["q_lora_rank"], config["o_groups"] * config["o_lora_rank"]
    for part in ("attn", "ffn"):
        yield from _streams(config, f"{at}hc_{part}_", 24, 3)
        yield _norm(f"{at}{part}_norm.weight", hidden)
    yield Weight(at + "attn.attn_sink", (heads,), 0.5, f32=True)
    yield _linear(at + "attn.wq_a.weight", rank, hidden)
    yield _norm(at + "attn.q_norm.weight", rank)
    yield _linear(at + "attn.wq_b.weight", heads * head, rank)
    yield _linear(at + "attn.wkv.weight", head, hidden)
    yield _norm(at + "attn.kv_norm.weight", head)
    yield _linear(at + "attn.wo_a.weight", rows, heads * head // config["o_groups"])
    yield _linear(at + "attn.wo_b.weight", hidden, rows)
    ratio = 0 if at.startswith("mtp.") else config["compress_ratios"][layer]
    key, index_heads = config["index_head_dim"], config["index_n_heads"]
    if ratio:
        yield from _compressor(at + "attn.compressor.", ratio, head * (2 if ratio == 4 else 1), head, hidden)
    if ratio == 4:
        yield _linear(at + "attn.indexer.wq_b.weight", index_heads * key, rank)
        yield _linear(at + "attn.indexer.weights_proj.weight", index_heads, hidden)
        yield from _compressor(at + "attn.indexer.compressor.", ratio, 2 * key, key, hidden)
    yield from _experts(config, layer, at + "ffn.")


def _compressor(at: str, ratio: int, width: int, key: int, hidden: int) -> Iterator[Weight]:
    yield _linear(at + "wkv.weight", width, hidden)
    yield _linear(at + "wgate.weight", width, hidden)
    yield Weight(at + "ape", (ratio, width), 0.5, f32=True)
    yield _norm(at + "norm.weight", key)


def _experts(config: Config, layer: int, at: str) -> Iterator[Weight]:
    hidden, inner, count = config["hidden_size"], config["moe_intermediate_size"], config["n_routed_experts"]
    yield _linear(at + "gate.weight", count, hidden)
    if layer >= config["num_hash_layers"]:
        yield Weight(at + "gate.bias", (count,), 0.3, f32=True)
    for expert in [f"experts.{number}" for number in range(count)] + ["shared_experts"]:
        yield _linear(f"{at}{expert}.w1.weight", inner, hidden)
        yield _linear(f"{at}{expert}.w2.weight", hidden, inner)
        yield _linear(f"{at}{expert}.w3.weight", inner, hidden)


def _linear(name: str, rows: int, columns: int) -> Weight:
    return Weight(name, (rows, columns), 1 / math.sqrt(columns))


def _norm(name: str, size: int) -> Weight:
    return Weight(name, (size,), 0.1, mean=1.0)


def table(config: Config, layer: int) -> np.ndarray:
    """Which experts a token takes by its id, int64 [vocabulary, experts of a token], no expert twice."""
    rng = np.random.default_rng(layer)
    order = rng.permuted(np.tile(np.arange(config["n_routed_experts"]), (config["vocab_size"], 1)), axis=1)
    return order[:, : config["num_experts_per_tok"]]


# ------------------------------------------------------------------------------------------------------ storage


def stored(weight: Weight, config: Config, seed: int) -> Iterator[Stored]:
    """How a weight lies in a published shard."""
    name, base = weight.name, weight.name.removesuffix(".weight")
    values = weight.values(seed)
    experts = ".experts." in name
    if experts and config.get("expert_dtype") == "fp4":
        codes, exponents = packed(values)
        yield Stored(name, "I8", codes.shape, lambda: codes.view(np.int8))
        yield Stored(base + ".scale", "F8_E8M0", exponents.shape, lambda: exponents)
    elif config.get("quantization_config") and (base.endswith(FP8) or (base.endswith(EXPERTS))):
        floats, scales = numbers.e4m3_blocks(values, 128, power_of_two=True)
        yield Stored(name, "F8_E4M3", values.shape, lambda: floats)
        yield Stored(base + ".scale", "F8_E8M0", scales.shape, lambda: numbers.to_e8m0(scales))
    elif weight.f32:
        yield Stored(name, "F32", values.shape, lambda: values)
    else:
        yield Stored(name, "BF16", values.shape, lambda: numbers.to_bf16(values))


def packed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [M, N] as 4-bit floats, two in a byte, the first in the low half, and exponents of groups of 32."""
    groups = values.reshape(len(values), -1, 32)
    exponents = np.ceil(np.log2(np.abs(groups).max(axis=2) / 6)).astype(np.int32)
    codes = np.abs(groups[..., None] / np.exp2(exponents)[:, :, None, None]).clip(max=6)
    codes = np.abs(np.abs(codes) - E2M1).argmin(axis=-1).astype(np.uint8) | (groups < 0).astype(np.uint8) << 3
    flat = codes.reshape(len(values), -1)
    return flat[:, ::2] | flat[:, 1::2] << 4, (exponents + 127).astype(np.uint8)


def write(directory: Path, kind: str, *, seed: int = 7, tokenizer: str = "bundled", **changes: Any) -> Path:
    """Write a checkpoint in the published form."""
    config = {**KINDS[kind], **changes}
    tensors = [part for weight in weights(config) for part in stored(weight, config, seed)]
    for layer in range(config["num_hash_layers"]):
        ids = table(config, layer)
        tensors.append(Stored(f"layers.{layer}.ffn.gate.tid2eid", "I64", ids.shape, lambda ids=ids: ids))
    return hub.assemble(directory, config, tensors, tokenizer)


# ---------------------------------------------------------------------------------------------- as transformers has it


def decoded(config: Config, seed: int = 7) -> dict[str, np.ndarray]:
    """Every value that the checkpoint holds, float32 by published name."""
    found = {}
    for weight in weights(config):
        first, *scales = [(part.dtype, part.make()) for part in stored(weight, config, seed)]
        found[weight.name] = _decoded(first, scales[0][1] if scales else None)
    return found


def _decoded(first: tuple[str, np.ndarray], scales: np.ndarray | None) -> np.ndarray:
    kind, content = first
    if kind == "BF16":
        return content.view(ml_dtypes.bfloat16).astype(np.float32)
    if scales is None:
        return content.astype(np.float32)
    powers = np.exp2(scales.astype(np.float64) - 127)
    if kind == "I8":
        halves = np.stack([content.view(np.uint8) & 15, content.view(np.uint8) >> 4], axis=-1).reshape(len(content), -1)
        values = E2M1[halves & 7] * np.where(halves > 7, -1, 1)
        return (values * powers.repeat(32, axis=1)).astype(np.float32)
    values = content.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    spread = powers.repeat(128, axis=0).repeat(128, axis=1)[: len(values), : values.shape[1]]
    return (values * spread).astype(np.float32)


def as_gguf(values: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a GGUF file, but for the tables, from those of a checkpoint by published name."""
    experts: dict[str, list[np.ndarray]] = {}
    for name, content in values.items():
        layer = re.match(r"layers\.(\d+)\.(.+)", name)
        if name.startswith("mtp."):
            continue
        if layer is None:
            yield IN_GGUF.get(name, name.replace("hc_head", "output_hc") + ".weight"), content
        elif ".experts." in name:
            part = {"w1": "gate", "w2": "down", "w3": "up"}[name.split(".")[-2]]
            experts.setdefault(f"blk.{layer[1]}.ffn_{part}_exps.weight", []).append(content)
        else:
            yield f"blk.{layer[1]}.{_in_gguf(layer[2])}", content
    yield from ((name, np.stack(parts)) for name, parts in experts.items())


AROUND = ("e_proj.weight", "h_proj.weight", "enorm.weight", "hnorm.weight", "norm.weight")  # the block of prediction


def block_as_layer(values: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """The block of prediction, by the names of the layer after the last."""
    own = {name.removeprefix("mtp.0."): content for name, content in values.items() if name.startswith("mtp.0.")}
    return {f"layers.{layers}.{n}": x for n, x in own.items() if n not in AROUND and not n.startswith("hc_head_")}


def prediction_as_gguf(values: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """The tensors of a GGUF file of prediction alone, from those of a checkpoint by published name."""
    shared = {name: values[name] for name in ("embed.weight", "norm.weight", "head.weight")}
    joining = {name: values[f"mtp.0.{name}"] for name in ("hc_head_fn", "hc_head_base", "hc_head_scale")}
    around, at = {name: values[f"mtp.0.{name}"] for name in AROUND}, f"blk.{layers}.nextn."
    return {
        **dict(as_gguf(shared | joining | block_as_layer(values, layers))),
        **{f"{at}{name}.weight": around[f"{name}.weight"] for name in ("enorm", "hnorm")},
        at + "shared_head_norm.weight": around["norm.weight"],
        at + "eh_proj.weight": np.concatenate([around["e_proj.weight"], around["h_proj.weight"]], axis=1),
    }


IN_GGUF = {
    "embed.weight": "token_embd.weight", "head.weight": "output.weight", "norm.weight": "output_norm.weight",
    "attn.attn_sink": "attn_sinks.weight", "attn.wq_a.weight": "attn_q_a.weight",
    "attn.q_norm.weight": "attn_q_a_norm.weight", "attn.wq_b.weight": "attn_q_b.weight",
    "attn.wkv.weight": "attn_kv.weight", "attn.kv_norm.weight": "attn_kv_a_norm.weight",
    "attn.wo_a.weight": "attn_output_a.weight", "attn.wo_b.weight": "attn_output_b.weight",
    "attn.indexer.wq_b.weight": "indexer.attn_q_b.weight", "attn.indexer.weights_proj.weight": "indexer.proj.weight",
    "ffn.gate.weight": "ffn_gate_inp.weight", "ffn.gate.bias": "exp_probs_b.bias",
    "ffn.shared_experts.w1.weight": "ffn_gate_shexp.weight", "ffn.shared_experts.w2.weight": "ffn_down_shexp.weight",
    "ffn.shared_experts.w3.weight": "ffn_up_shexp.weight",
}  # fmt: skip


def _in_gguf(name: str) -> str:
    if name in IN_GGUF:
        return IN_GGUF[name]
    name = name.removesuffix(".weight") + ".weight"
    for of, to in (("attn.indexer.compressor.", "indexer_compressor_"), ("attn.compressor.", "attn_compressor_")):
        name = name.replace(of, to)
    return name.replace("_wkv.", "_kv.").replace("_wgate.", "_gate.")


def hf_model(config: Config, values: dict[str, np.ndarray] | None = None) -> Any:
    """The model in transformers with the values that the checkpoint holds, or others, float32."""
    import torch
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

    known = {key: value for key, value in config.items() if key not in {"quantization_config", "expert_dtype"}}
    scaling = dict(known.pop("rope_scaling"))
    parameters = {"rope_type": scaling.pop("type"), **scaling}
    settings = DeepseekV4Config(**known, rope_parameters=parameters, attn_implementation="eager")
    model = DeepseekV4ForCausalLM(settings).float().eval()
    held = decoded(config) if values is None else values
    named = {transformers_name(name): content for name, content in held.items() if "mtp." not in name}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}.mlp."
        parts = {part: [] for part in ("w1", "w2", "w3")}
        for expert in range(config["n_routed_experts"]):
            for part, found in parts.items():
                found.append(named.pop(f"{at}experts.{expert}.{part}.weight"))
        named[at + "experts.gate_up_proj"] = np.concatenate([np.stack(parts["w1"]), np.stack(parts["w3"])], axis=1)
        named[at + "experts.down_proj"] = np.stack(parts["w2"])
        if layer < config["num_hash_layers"]:
            named[at + "gate.tid2eid"] = table(config, layer)
    model.load_state_dict({name: torch.tensor(values) for name, values in named.items()}, strict=True)
    return model


_RENAMED = (
    (r"^embed\.", "model.embed_tokens."), (r"^head\.", "lm_head."), (r"^norm\.", "model.norm."),
    (r"^hc_head_(\w+)$", r"model.hc_head.hc_\1"), (r"^layers\.", "model.layers."),
    (r"\.hc_(attn|ffn)_(\w+)$", r".\1_hc.\2"), (r"\.attn_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."), (r"\.ffn\.", ".mlp."),
    (r"gate\.bias$", "gate.e_score_correction_bias"),
    (r"shared_experts\.w1\.", "shared_experts.gate_proj."), (r"shared_experts\.w2\.", "shared_experts.down_proj."),
    (r"shared_experts\.w3\.", "shared_experts.up_proj."), (r"\.attn\.attn_sink$", ".self_attn.sinks"),
    (r"\.attn\.indexer\.weights_proj\.", ".self_attn.compressor.indexer.scorer.weights_proj."),
    (r"\.attn\.indexer\.wq_b\.", ".self_attn.compressor.indexer.q_b_proj."),
    (r"\.attn\.indexer\.compressor\.", ".self_attn.compressor.indexer."),
    (r"\.attn\.", ".self_attn."), (r"\.wq_a\.", ".q_a_proj."), (r"\.wq_b\.", ".q_b_proj."), (r"\.wkv\.", ".kv_proj."),
    (r"\.wgate\.", ".gate_proj."), (r"\.ape$", ".position_bias"), (r"(compressor|indexer)\.norm\.", r"\1.kv_norm."),
    (r"\.q_norm\.", ".q_a_norm."), (r"\.wo_a\.", ".o_a_proj."), (r"\.wo_b\.", ".o_b_proj."),
)  # fmt: skip


def transformers_name(name: str) -> str:
    """The name in transformers of a published one; of an expert's projection all but its end."""
    for pattern, other in _RENAMED:
        name = re.sub(pattern, other, name)
    return name
