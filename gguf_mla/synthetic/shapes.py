"""The configurations of the published models, and the same model smaller.

Sources: config.json as published by DeepSeek, Z.ai and Moonshot.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError
from gguf_mla.families import family_of, prediction
from gguf_mla.families.base import Layers, source_shapes
from gguf_mla.sources.config import Config
from gguf_mla.synthetic.storage import FP8_BLOCK, INT4_GROUP
from gguf_mla.units import count

if TYPE_CHECKING:
    from collections.abc import Mapping

STEP = 32  # rows of experts: what a small model's size is made exact with, and the smallest block of a ggml type
WIDEST = 4096  # hidden size of a small model
SHARED = ("embed_tokens.weight", "shared_head.head.weight")  # by prediction with the model

_HEADS = {
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "attention_bias": False,
    "attention_dropout": 0.0,
}  # fmt: skip
_COMMON = {
    "first_k_dense_replace": 1, "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 163840,
    "moe_layer_freq": 1, "rms_norm_eps": 1e-6, "rope_theta": 10000, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "use_cache": True, **_HEADS,
}  # fmt: skip


def _yarn(mscale: float, factor: float = 40.0, beta_fast: float = 32) -> dict[str, Any]:
    return {
        "type": "yarn", "factor": factor, "original_max_position_embeddings": 4096, "beta_fast": beta_fast,
        "beta_slow": 1, "mscale": mscale, "mscale_all_dim": mscale,
    }  # fmt: skip


_V2_LITE: dict[str, Any] = {
    **_COMMON, "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": 102400,
    "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
    "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1,
    "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 1.0,
    "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": None, "rope_scaling": _yarn(0.707),
}  # fmt: skip
_V2 = _V2_LITE | {
    "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 60,
    "n_routed_experts": 160, "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy",
    "routed_scaling_factor": 16.0, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "rope_scaling": _yarn(1.0),
}  # fmt: skip
_V3: dict[str, Any] = {
    **_COMMON, "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 129280,
    "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
    "first_k_dense_replace": 3, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "num_nextn_predict_layers": 1, "rope_scaling": _yarn(1.0),
    "quantization_config": {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
    },
}  # fmt: skip
_V32 = _V3 | {
    "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", "index_head_dim": 128,
    "index_n_heads": 64, "index_topk": 2048, "quantization_config": _V3["quantization_config"] | {"scale_fmt": "ue8m0"},
}  # fmt: skip
_GLM_DSA = {key: value for key, value in _V32.items() if key != "quantization_config"} | {
    "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "vocab_size": 154880, "hidden_size": 6144,
    "intermediate_size": 12288, "num_hidden_layers": 78, "n_group": 1, "topk_group": 1, "num_attention_heads": 64,
    "num_key_value_heads": 64, "q_lora_rank": 2048, "qk_nope_head_dim": 192, "v_head_dim": 256, "index_n_heads": 32,
    "max_position_embeddings": 202752, "rms_norm_eps": 1e-5, "rope_theta": 1000000, "rope_scaling": None,
}  # fmt: skip
_GLM_52 = _GLM_DSA | {
    "indexer_types": ["full" if layer < 3 or layer % 4 == 2 else "shared" for layer in range(78)],
    "max_position_embeddings": 1048576,
}
_INT4: dict[str, Any] = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
    "kv_cache_scheme": None,
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"], "input_activations": None, "output_activations": None,
            "weights": {
                "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": INT4_GROUP,
                "actorder": None, "block_structure": None, "dynamic": False, "observer": "minmax",
                "observer_kwargs": {},
            },
        }
    },
}  # fmt: skip
_KIMI_K2 = _V3 | {
    "model_type": "kimi_k2", "vocab_size": 163840, "first_k_dense_replace": 1, "n_routed_experts": 384, "n_group": 1,
    "topk_group": 1, "routed_scaling_factor": 2.827, "num_attention_heads": 64, "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0, "max_position_embeddings": 262144, "rope_theta": 50000.0,
    "rope_scaling": _yarn(1.0, 64.0, 1.0), "quantization_config": _INT4,
}  # fmt: skip

_V4_FLASH: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "vocab_size": 129280, "hidden_size": 4096,
    "num_hidden_layers": 43, "num_attention_heads": 64, "num_key_value_heads": 1, "head_dim": 512, "q_lora_rank": 1024,
    "qk_rope_head_dim": 64, "o_groups": 8, "o_lora_rank": 1024, "n_routed_experts": 256, "num_experts_per_tok": 6,
    "n_shared_experts": 1, "moe_intermediate_size": 2048, "index_n_heads": 64, "index_head_dim": 128,
    "index_topk": 512, "routed_scaling_factor": 1.5, "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
    "sliding_window": 128, "rope_theta": 10000, "compress_rope_theta": 160000, "num_hash_layers": 3, "hc_mult": 4,
    "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "swiglu_limit": 10.0, "norm_topk_prob": True,
    "scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc", "rms_norm_eps": 1e-6, "num_nextn_predict_layers": 1,
    "max_position_embeddings": 1048576, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "attention_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True,
    "expert_dtype": "fp4", "quantization_config": _V32["quantization_config"],
    "rope_scaling": {
        "type": "yarn", "factor": 16, "original_max_position_embeddings": 65536, "beta_fast": 32, "beta_slow": 1,
    },
}  # fmt: skip
_V4_PRO = _V4_FLASH | {
    "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "q_lora_rank": 1536, "o_groups": 16,
    "n_routed_experts": 384, "moe_intermediate_size": 3072, "index_topk": 1024, "routed_scaling_factor": 2.5,
    "compress_ratios": [128, 128, *[4, 128] * 29, 4, 0],
}  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "deepseek-v2-lite": _V2_LITE,
    "deepseek-v2": _V2,
    "deepseek-v3": _V3,
    "deepseek-v3.2": _V32,
    "glm-5": _GLM_DSA,
    "glm-5.2": _GLM_52,
    "kimi-k2-thinking": _KIMI_K2,
    "deepseek-v4-flash": _V4_FLASH,
    "deepseek-v4-pro": _V4_PRO,
}
FAMILIES = {
    "v2-lite": "deepseek-v2-lite",
    "v2": "deepseek-v2",
    "v3": "deepseek-v3",
    "v32": "deepseek-v3.2",
    "glm-dsa": "glm-5",
    "glm-5.2": "glm-5.2",
    "kimi-k2": "kimi-k2-thinking",
    "v4": "deepseek-v4-flash",
}


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the weights of a model by their names in a checkpoint."""
    checked = Config(config, Path("config.json"))
    family = family_of(checked)
    checked = checked.with_defaults(family.unsaid)
    return source_shapes(family, checked, family.layers_in(checked, prediction.stated(checked)))


def apart(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the weights of multi-token prediction that is a file of its own; embeddings and output are the model's."""
    checked = Config(config, Path("config.json"))
    family, layers = family_of(checked), checked.positive("num_hidden_layers")
    predicting = checked.integer("num_nextn_predict_layers", 0) if family.apart else 0
    own = source_shapes(family, checked, Layers(layers, predicting, layers)) if predicting else {}
    return {n: s for n, s in own.items() if n.startswith("model.layers.") and not n.endswith(SHARED)}


def parameters(config: Mapping[str, Any]) -> int:
    """Return how many weights the model has, as a GGUF file holds them."""
    return sum(math.prod(shape) for shape in shapes(config).values())


def reduced(config: Mapping[str, Any], fraction: float) -> dict[str, Any]:
    """Return a configuration of about a fraction of the parameters: fewer layers and experts, all matrices as wide.

    One dense layer stays; without multi-token prediction.
    """
    plain = dict(config) | {"first_k_dense_replace": 1, "num_nextn_predict_layers": 0}
    groups, one = config.get("n_group", 1), 3 * config["hidden_size"] * config["moe_intermediate_size"]
    rest = parameters(_cut(plain, 2) | {"n_routed_experts": groups}) - groups * one
    experts = max(groups, (fraction * parameters(config) - rest) / one)
    layers = math.ceil(experts / config["n_routed_experts"])
    in_groups = max(1, round(experts / layers / groups)) * groups
    return _cut(plain, 1 + layers) | {"n_routed_experts": min(in_groups, config["n_routed_experts"])}


def sized(config: Mapping[str, Any], size: int, vocabulary: int) -> dict[str, Any]:
    """Return a configuration of about so many parameters: the heads as they are, everything else smaller.

    Four layers, one of them dense (of V4 six, of every kind), with 16 experts each; half of the weights or more are in
    experts where that is possible. InputError for a size below what the heads need, or beyond what is made here.
    """
    widths = range(256, WIDEST + 1, 256)
    smallest, largest = (parameters(_small(config, width, STEP, vocabulary)) for width in (widths[0], widths[-1]))
    if not smallest <= size <= 4 * largest:
        raise InputError(
            "no model of this size can be made with heads as they are",
            expected=f"{count(smallest)} to {count(4 * largest)} parameters",
            found=count(size),
        )
    fitting = [width for width in widths if parameters(_small(config, width, STEP, vocabulary)) <= size // 2]
    width = fitting[-1] if fitting else widths[0]
    first, second = (parameters(_small(config, width, rows, vocabulary)) for rows in (STEP, 2 * STEP))
    return _small(config, width, STEP * (1 + max(0, round((size - first) / (second - first)))), vocabulary)


def _small(config: Mapping[str, Any], width: int, expert_rows: int, vocabulary: int) -> dict[str, Any]:
    if "compress_ratios" in config:
        return _small_v4(config, width, expert_rows, vocabulary)
    heads = width // 128
    grouped = config["n_group"] > 1
    return _cut(config, 4) | {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 2 * width,
        "moe_intermediate_size": expert_rows, "first_k_dense_replace": 1, "num_attention_heads": heads,
        "num_key_value_heads": heads, "q_lora_rank": config["q_lora_rank"] and width // 2, "n_routed_experts": 16,
        "num_experts_per_tok": 4, "n_group": 4 if grouped else 1, "topk_group": 2 if grouped else 1,
    }  # fmt: skip


def _cut(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Return a configuration of the first layers only."""
    listed = {"indexer_types": config["indexer_types"][:layers]} if "indexer_types" in config else {}
    return dict(config) | {"num_hidden_layers": layers} | listed


def _small_v4(config: Mapping[str, Any], width: int, expert_rows: int, vocabulary: int) -> dict[str, Any]:
    return dict(config) | {
        "vocab_size": vocabulary, "hidden_size": width, "moe_intermediate_size": expert_rows, "num_hidden_layers": 6,
        "compress_ratios": [0, 0, 4, 128, 4, 0, 0], "num_hash_layers": 3, "num_attention_heads": width // 128,
        "q_lora_rank": width // 2, "o_groups": 2, "o_lora_rank": width // 2, "index_n_heads": 32, "index_topk": 64,
        "n_routed_experts": 16, "num_experts_per_tok": 4,
    }  # fmt: skip


def parse_parameters(text: str) -> int:
    """Return a number of parameters: 50M, 1.5B, 300K (decimal)."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([KMB])", text, re.IGNORECASE)
    if found is None:
        raise InputError("--size cannot be read", expected="parameters, as 50M or 1.5B", found=repr(text))
    return round(float(found[1]) * {"K": 10**3, "M": 10**6, "B": 10**9}[found[2].upper()])
