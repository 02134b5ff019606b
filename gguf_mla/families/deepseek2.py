"""DeepSeek-V2 and V3 with everything that shares their classes: V2-Lite, V2.5, Coder-V2, R1, V3.1, Kimi-K2, Moonlight.

One GGUF architecture, `deepseek2`, serves them all. H heads, n = nope, p = rope, v = value, r = kv_rank.
Sources: DeepSeek's published configurations and weights; the metadata keys that llama.cpp's deepseek2 reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.container.values import Value, boolean, f32, u32
from gguf_mla.families import prediction, yarn
from gguf_mla.families.base import (
    Dimensions,
    Drop,
    Family,
    Layers,
    Rule,
    Rules,
    key_half,
    ordinary_layers,
    stack,
    value_half,
)

if TYPE_CHECKING:
    from collections.abc import Container

    from gguf_mla.sources.config import Config

ARCHITECTURE = "deepseek2"

_LAYER = "model.layers.{layer}."
_ATTENTION = _LAYER + "self_attn."
_EXPERT = _LAYER + "mlp.experts.{expert}."
_SHARED = _LAYER + "mlp.shared_experts."

RULES = Rules(
    first=(Rule("token_embd.weight", "model.embed_tokens.weight", ("vocab", "hidden")),),
    layer=(
        Rule("blk.{layer}.attn_norm.weight", _LAYER + "input_layernorm.weight", ("hidden",)),
        Rule("blk.{layer}.attn_q.weight", _ATTENTION + "q_proj.weight", ("q_rows", "hidden"), "full q"),
        Rule("blk.{layer}.attn_q_a.weight", _ATTENTION + "q_a_proj.weight", ("q_rank", "hidden"), "low-rank q"),
        Rule("blk.{layer}.attn_q_a_norm.weight", _ATTENTION + "q_a_layernorm.weight", ("q_rank",), "low-rank q"),
        Rule("blk.{layer}.attn_q_b.weight", _ATTENTION + "q_b_proj.weight", ("q_rows", "q_rank"), "low-rank q"),
        Rule("blk.{layer}.attn_kv_a_mqa.weight", _ATTENTION + "kv_a_proj_with_mqa.weight", ("kv_rank+rope", "hidden")),
        Rule("blk.{layer}.attn_kv_a_norm.weight", _ATTENTION + "kv_a_layernorm.weight", ("kv_rank",)),
        Rule("blk.{layer}.attn_k_b.weight", _ATTENTION + "kv_b_proj.weight", ("kv_b_rows", "kv_rank"), form=key_half),
        Rule("blk.{layer}.attn_v_b.weight", _ATTENTION + "kv_b_proj.weight", ("kv_b_rows", "kv_rank"), form=value_half),
        Rule("blk.{layer}.attn_output.weight", _ATTENTION + "o_proj.weight", ("hidden", "o_cols")),
        Rule("blk.{layer}.ffn_norm.weight", _LAYER + "post_attention_layernorm.weight", ("hidden",)),
        Rule("blk.{layer}.ffn_gate.weight", _LAYER + "mlp.gate_proj.weight", ("ffn", "hidden"), "dense"),
        Rule("blk.{layer}.ffn_down.weight", _LAYER + "mlp.down_proj.weight", ("hidden", "ffn"), "dense"),
        Rule("blk.{layer}.ffn_up.weight", _LAYER + "mlp.up_proj.weight", ("ffn", "hidden"), "dense"),
        Rule("blk.{layer}.ffn_gate_inp.weight", _LAYER + "mlp.gate.weight", ("experts", "hidden"), "moe"),
        Rule(
            "blk.{layer}.exp_probs_b.bias", _LAYER + "mlp.gate.e_score_correction_bias", ("experts",), "corrected moe"
        ),
        Rule("blk.{layer}.ffn_gate_exps.weight", _EXPERT + "gate_proj.weight", ("expert_ffn", "hidden"), "moe", stack),
        Rule("blk.{layer}.ffn_down_exps.weight", _EXPERT + "down_proj.weight", ("hidden", "expert_ffn"), "moe", stack),
        Rule("blk.{layer}.ffn_up_exps.weight", _EXPERT + "up_proj.weight", ("expert_ffn", "hidden"), "moe", stack),
        Rule("blk.{layer}.ffn_gate_shexp.weight", _SHARED + "gate_proj.weight", ("shared_ffn", "hidden"), "moe"),
        Rule("blk.{layer}.ffn_down_shexp.weight", _SHARED + "down_proj.weight", ("hidden", "shared_ffn"), "moe"),
        Rule("blk.{layer}.ffn_up_shexp.weight", _SHARED + "up_proj.weight", ("shared_ffn", "hidden"), "moe"),
    ),
    last=(
        Rule("output_norm.weight", "model.norm.weight", ("hidden",)),
        Rule("output.weight", "lm_head.weight", ("vocab", "hidden"), "untied"),
    ),
)

# topk_method → (scoring function that belongs to it, whether groups limit the choice)
_ROUTING = {"greedy": ("softmax", False), "group_limited_greedy": ("softmax", True), "noaux_tc": ("sigmoid", True)}
_GATING = {"softmax": 1, "sigmoid": 2}
_LITE_LAYERS = (26, 27)  # llama.cpp takes such a model for V2-Lite and does not look for a low-rank q


def dimensions(config: Config) -> Dimensions:
    """Return the sizes the rules name."""
    heads, nope, rope, value = (
        config.positive(key) for key in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    rank, experts = config.positive("kv_lora_rank"), experts_of(config)
    expert_ffn = config.positive("moe_intermediate_size") if experts else 0
    return prediction.dimensions({
        "vocab": config.positive("vocab_size"),
        "hidden": config.positive("hidden_size"),
        "heads": heads, "nope": nope, "rope": rope, "value": value, "kv_rank": rank,
        "q_rank": config.integer("q_lora_rank", 0),
        "q_rows": heads * (nope + rope),
        "kv_rank+rope": rank + rope,
        "kv_b_rows": heads * (nope + value),
        "o_cols": heads * value,
        "ffn": config.positive("intermediate_size"),
        "experts": experts,
        "expert_ffn": expert_ffn,
        "shared_ffn": expert_ffn * config.positive("n_shared_experts") if experts else 0,
    })  # fmt: skip


def conditions(config: Config, layer: int | None) -> frozenset[str]:
    """Return what holds for the model or for a layer of it."""
    if layer is None:
        return frozenset() if config.flag("tie_word_embeddings", default=False) else frozenset({"untied"})
    held = {"low-rank q" if config.has("q_lora_rank") else "full q"} | prediction.conditions(config, layer)
    if layer < dense_layers(config) or not experts_of(config):
        return frozenset(held | {"dense"})
    held.add("moe")
    if _routing(config) == "noaux_tc":
        held.add("corrected moe")
    return frozenset(held)


def experts_of(config: Config) -> int:
    """Return how many routed experts a layer has; 0 for a model whose layers are all dense, which states none."""
    return config.integer("n_routed_experts", 0)


def dense_layers(config: Config) -> int:
    """Return how many layers, the first ones, have no experts; some configurations list each layer's kind instead."""
    if not experts_of(config):
        return config.positive("num_hidden_layers")
    kinds = config.content.get("mlp_layer_types")
    if config.has("first_k_dense_replace") or not isinstance(kinds, list):
        return config.integer("first_k_dense_replace", 0)
    dense = kinds.count("dense")
    if kinds != ["dense"] * dense + ["sparse"] * (len(kinds) - dense):
        raise config.refuse("mlp_layer_types", "dense layers first, then sparse ones", kinds, "cannot be expressed")
    return dense


def drops(config: Config, names: Container[str]) -> tuple[Drop, ...]:
    """Return what a file for this configuration does without."""
    own = r"embed_tokens\.weight|enorm\.weight|hnorm\.weight|eh_proj\.weight|shared_head\.(norm|head)\.weight"
    block = r"(input|post_attention)_layernorm\.weight|self_attn\..+|mlp\..+"
    found = []
    if layers := "|".join(map(str, prediction.found(config, names))):
        found.append(Drop(rf"model\.layers\.({layers})\.({own}|{block})", "multi-token prediction, left out"))
    if config.flag("tie_word_embeddings", default=False):
        found.append(Drop(r"lm_head\.weight", "tied to the token embeddings"))
    return tuple(found)


def metadata(config: Config, layers: Layers) -> dict[str, Value]:
    """Return the deepseek2 keys; InputError for a configuration that they cannot express."""
    values = common_values(config, layers)
    # Without a low-rank q, llama.cpp refuses a file that lacks the rank, unless its depth is that of V2-Lite.
    if config.has("q_lora_rank") or config.positive("num_hidden_layers") not in _LITE_LAYERS:
        values["attention.q_lora_rank"] = u32(config.integer("q_lora_rank", 0))
    values |= prediction.values(layers)
    return {f"{ARCHITECTURE}.{key}": value for key, value in values.items()}


def common_values(config: Config, layers: Layers, architecture: str = ARCHITECTURE) -> dict[str, Value]:
    """Return the keys of every architecture with this attention and these experts, without its prefix."""
    _check(config)
    dims = dimensions(config)
    values: dict[str, Value] = {
        "block_count": u32(layers.total),
        "context_length": u32(config.positive("max_position_embeddings")),
        "embedding_length": u32(dims["hidden"]),
        "feed_forward_length": u32(dims["ffn"]),
        "attention.head_count": u32(dims["heads"]),
        "attention.head_count_kv": u32(1),  # all heads share the latent row
        **yarn.rope_values(config, architecture),
        "attention.layer_norm_rms_epsilon": f32(config.number("rms_norm_eps", 1e-6)),
        **_routing_values(config),
        "attention.key_length": u32(dims["kv_rank+rope"]),
        "attention.value_length": u32(dims["kv_rank"]),
        "leading_dense_block_count": u32(dense_layers(config)),
        "vocab_size": u32(dims["vocab"]),
        "attention.kv_lora_rank": u32(dims["kv_rank"]),
        "attention.key_length_mla": u32(dims["nope"] + dims["rope"]),
        "attention.value_length_mla": u32(dims["value"]),
        # Readers ask for these two of a model without experts, too, and then make nothing of them.
        "expert_feed_forward_length": u32(dims["expert_ffn"] or dims["ffn"]),
        "expert_shared_count": u32(config.positive("n_shared_experts") if dims["experts"] else 0),
        "rope.dimension_count": u32(dims["rope"]),
    }
    if dims["experts"] or config.has("routed_scaling_factor"):
        values["expert_weights_scale"] = f32(config.number("routed_scaling_factor", 1.0))
    if dims["experts"] and config.flag("norm_topk_prob", default=_routing(config) == "noaux_tc"):
        values["expert_weights_norm"] = boolean(True)
    return values


def _routing_values(config: Config) -> dict[str, Value]:
    """Return the keys that say how experts are chosen; none for a model without, where readers want none."""
    if not experts_of(config):
        return {}
    scoring = config.choice("scoring_func", tuple(_GATING), _ROUTING[_routing(config)][0])
    groups, groups_used = _groups(config)
    return {
        "expert_count": u32(experts_of(config)),
        "expert_used_count": u32(config.positive("num_experts_per_tok")),
        "expert_group_count": u32(groups),
        "expert_group_used_count": u32(groups_used),
        "expert_gating_func": u32(_GATING[scoring]),
    }


def warnings(config: Config) -> list[str]:
    """Return what llama.cpp will compute otherwise than the original, although the file is right."""
    found = []
    groups, used = _groups(config)
    if experts_of(config) and _routing(config) == "group_limited_greedy" and used < groups:
        found.append(
            "The model chooses expert groups by their best expert (topk_method group_limited_greedy); llama.cpp "
            "chooses them by the sum of their best two, so some tokens take other experts there than in the original."
        )
    eps = config.number("rms_norm_eps", 1e-6)
    if eps != 1e-6:
        found.append(
            f"rms_norm_eps is {eps:g}; the original norms the compressed q and kv with 1e-6 all the same, "
            f"llama.cpp uses {eps:g} for all norms."
        )
    layers = config.positive("num_hidden_layers")
    if config.has("q_lora_rank") and layers in _LITE_LAYERS:
        found.append(
            f"llama.cpp takes a model of {layers} layers for DeepSeek-V2-Lite and does not look for its low-rank q, "
            "so it will not load this file."
        )
    return found + yarn.warnings(config)


def _routing(config: Config) -> str:
    default = "greedy" if config.content.get("architectures") == ["DeepseekV2ForCausalLM"] else "noaux_tc"
    return config.choice("topk_method", tuple(_ROUTING), default)


def _groups(config: Config) -> tuple[int, int]:
    """Return how many groups there are and how many may be chosen from; one group where the method knows none."""
    if not _ROUTING[_routing(config)][1]:
        return 1, 1
    return config.positive("n_group", 1), config.positive("topk_group", 1)


def _check(config: Config) -> None:
    """Refuse what is another model than a deepseek2 file can describe."""
    config.choice("hidden_act", ("silu",), "silu")
    if config.integer("moe_layer_freq", 1) != 1:
        raise config.refuse("moe_layer_freq", 1, config.content["moe_layer_freq"], "cannot be expressed in GGUF")
    groups, used = _groups(config)
    if experts_of(config) and (used > groups or experts_of(config) % groups):
        raise config.refuse(
            "n_group",
            f"a divisor of n_routed_experts ({experts_of(config)}), not below topk_group ({used})",
            groups,
            remedy="Where experts were pruned, one group is meant, from which all may be chosen: --set n_group=1 --set "
            "topk_group=1",
        )


FAMILY = Family(
    architecture=ARCHITECTURE,
    classes=frozenset({"DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"}),
    rules=RULES.with_layer(*prediction.RULES),
    layers_in=ordinary_layers,
    dimensions=dimensions,
    conditions=conditions,
    drops=drops,
    metadata=metadata,
    warnings=warnings,
)
