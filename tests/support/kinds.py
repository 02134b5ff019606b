"""Configurations as the hub has them, in small, and how each kind of checkpoint is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gguf_mla.synthetic.storage import FP8_BLOCK, INT4_GROUP

Config = dict[str, Any]


def _yarn(mscale: float, factor: float = 40, original: int = 4096) -> Config:
    return {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": factor,
        "mscale": mscale,
        "mscale_all_dim": mscale,
        "original_max_position_embeddings": original,
        "type": "yarn",
    }


COMMON: Config = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 256,
    "moe_layer_freq": 1,
    "n_routed_experts": 16,
    "num_attention_heads": 4,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
}
V2: Config = {
    **COMMON,
    "architectures": ["DeepseekV2ForCausalLM"],
    "aux_loss_alpha": 0.001,
    "model_type": "deepseek_v2",
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "pretraining_tp": 1,
    "scoring_func": "softmax",
    "seq_aux": True,
}
V3: Config = {
    **COMMON,
    "architectures": ["DeepseekV3ForCausalLM"],
    "ep_size": 1,
    "model_type": "deepseek_v3",
    "n_group": 4,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 256,
    "rope_scaling": _yarn(1.0),
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 2,
    "topk_method": "noaux_tc",
}
FP8: Config = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
}
FP8_WHOLE: Config = {**FP8, "activation_scheme": "static", "weight_block_size": None}  # one scale for a matrix
V32: Config = {
    **V3,
    "architectures": ["DeepseekV32ForCausalLM"],
    "index_head_dim": 128,
    "index_n_heads": 32,  # with few, many scores are exactly 0 after ReLU, and top-k has ties to break
    "index_topk": 16,
    "model_type": "deepseek_v32",
}
GLM: Config = {  # as GLM-4.7-Flash's, whose heads are larger than DeepSeek's
    **V3,
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "model_type": "glm4_moe_lite",
    "n_group": 1,
    "qk_nope_head_dim": 192,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.8,
    "scoring_func": None,
    "topk_group": 1,
    "v_head_dim": 256,
}
GLM_DSA: Config = {
    **GLM,
    "architectures": ["GlmMoeDsaForCausalLM"],
    "index_head_dim": 128,
    "index_n_heads": 32,
    "index_topk": 16,
    "model_type": "glm_moe_dsa",
    "scoring_func": "sigmoid",
}
KIMI: Config = {  # Kimi-K2's
    **V3,
    "model_type": "kimi_k2",
    "n_group": 1,
    "num_nextn_predict_layers": 0,
    "rope_scaling": {**_yarn(1.0, factor=64), "beta_fast": 1.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
}
INT4: Config = {  # Kimi-K2-Thinking's; only routed experts are packed
    "config_groups": {
        "group_0": {
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {
                "actorder": None,
                "block_structure": None,
                "dynamic": False,
                "group_size": INT4_GROUP,
                "num_bits": 4,
                "observer": "minmax",
                "observer_kwargs": {},
                "strategy": "group",
                "symmetric": True,
                "type": "int",
            },
        }
    },
    "format": "pack-quantized",
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}
YOUTU: Config = {  # Youtu-LLM's: no experts anywhere, tied
    **{key: value for key, value in COMMON.items() if "expert" not in key and "moe" not in key},
    "architectures": ["YoutuForCausalLM"],
    "embedding_initializer_range": 0.04,
    "model_type": "youtu",
    "q_lora_rank": 256,
    "rope_interleave": True,
    "rope_theta": 1600000.0,
    "tie_word_embeddings": True,
}
del YOUTU["first_k_dense_replace"]
MISTRAL4: Config = {  # Mistral-Small-4's, whose queries grow after the first 32 tokens instead of 8192
    **COMMON,
    "architectures": ["Mistral4ForCausalLM"],
    "first_k_dense_replace": 0,
    "kv_lora_rank": 256,
    "model_type": "mistral4",
    "n_group": 1,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "q_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "rope_interleave": True,
    "rope_parameters": {
        **_yarn(1.0, factor=128.0, original=32),
        "llama_4_scaling_beta": 0.1,
        "rope_theta": 10000.0,
        "rope_type": "yarn",
    },
    "rope_theta": None,
    "routed_scaling_factor": 1.0,
    "topk_group": 1,
}
V3_FP8: Config = {**V3, "quantization_config": FP8}
V3_UE8M0: Config = {**V3, "quantization_config": {**FP8, "scale_fmt": "ue8m0"}}


@dataclass(frozen=True)
class Kind:
    """A configuration and how its matrices are stored: BF16, F16, F32, e4m3 with one of four kinds of scales, INT4."""

    config: Config
    storage: str = "bf16"


KINDS: dict[str, Kind] = {
    "v2lite": Kind(
        {
            **V2,
            "n_group": 1,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 27,
            "q_lora_rank": None,
            "rope_scaling": _yarn(0.707),
            "routed_scaling_factor": 1.0,
            "topk_group": 1,
            "topk_method": "greedy",
        }
    ),
    "v2": Kind(
        {
            **V2,
            "n_group": 4,
            "q_lora_rank": 256,
            "rope_scaling": _yarn(1.0),
            "routed_scaling_factor": 16.0,
            "topk_group": 2,
            "topk_method": "group_limited_greedy",
        }
    ),
    "v3": Kind(V3),
    "v32": Kind(V32),
    "v32fp8": Kind({**V32, "quantization_config": FP8}, "fp8"),
    "glm-lite": Kind(GLM),
    "glm-dsa": Kind(GLM_DSA),
    "glm-5.2": Kind(
        {**GLM_DSA, "indexer_types": ["full", "shared", "full", "shared"], "max_position_embeddings": 1 << 20}
    ),
    "youtu": Kind(YOUTU),
    "mistral4": Kind(MISTRAL4),
    "mistral4-fp8": Kind({**MISTRAL4, "quantization_config": FP8_WHOLE}, "fp8-tensor"),
    "v3-f16": Kind({**V3, "torch_dtype": "float16"}, "f16"),
    "v3-f32": Kind({**V3, "torch_dtype": "float32"}, "f32"),
    "v3-tied": Kind({**V3, "num_nextn_predict_layers": 0, "tie_word_embeddings": True}),
    "v3fp8": Kind(V3_FP8, "fp8"),
    "v3fp8-f32-powers": Kind(V3_UE8M0, "fp8-f32-powers"),
    "v3fp8-e8m0": Kind(V3_UE8M0, "fp8-e8m0"),
    "v3fp8-uint8": Kind(V3_UE8M0, "fp8-uint8"),
    "kimi": Kind(KIMI),
    "kimi-int4": Kind({**KIMI, "quantization_config": INT4}, "int4"),
}
