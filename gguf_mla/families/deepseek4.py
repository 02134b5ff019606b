"""DeepSeek-V4 (Flash, Pro, their dated editions, -Base, Vision-Exp's text): compressed attention, residual streams.

A layer attends to a window; where it has a ratio also to what each so many tokens were compressed to: all of that at
ratio 128, what an indexer chooses at ratio 4. H heads of `head` values share one key, which is also the value. The
residual is `streams` vectors. The first layers choose experts by a table of token ids.

Sources: DeepSeek's published configurations and weights; the metadata keys that llama.cpp's deepseek4 reads.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from gguf_mla.container.values import Kind, Value, array, boolean, f32, string, u32
from gguf_mla.families import prediction
from gguf_mla.families.base import (
    ALONE,
    HEAD,
    WHOLE,
    Dimensions,
    Drop,
    Family,
    Layers,
    Rule,
    Rules,
    ordinary_layers,
    stack,
)

if TYPE_CHECKING:
    from collections.abc import Container

    from gguf_mla.sources.config import Config

ARCHITECTURE, NAME = "deepseek4", "DeepSeek-V4"
WINDOW, CSA, HCA = 0, 4, 128  # ratios: the window alone, compressed and chosen from, heavily compressed
LAYER_TYPES = {"sliding_attention": WINDOW, "compressed_sparse_attention": CSA, "heavily_compressed_attention": HCA}
STREAMS = 4  # that readers know
SQRT_SOFTPLUS = 4  # the number of the scoring function

_LAYER = "model.layers.{layer}."
_ATTENTION = _LAYER + "self_attn."
_COMPRESSOR = _ATTENTION + "compressor."
_INDEXER = _COMPRESSOR + "indexer."
_EXPERT = _LAYER + "mlp.experts.{expert}."
_SHARED = _LAYER + "mlp.shared_experts."
_BLOCK = "blk.{layer}."


def _mixing(output: str, source: str) -> tuple[Rule, ...]:
    """Return the rules of a hyper-connection: what mixes the streams into a sublayer and out of it."""
    return (
        Rule(f"{_BLOCK}{output}_fn.weight", f"{_LAYER}{source}.fn", ("mixes", "streams hidden")),
        Rule(f"{_BLOCK}{output}_base.weight", f"{_LAYER}{source}.base", ("mixes",)),
        Rule(f"{_BLOCK}{output}_scale.weight", f"{_LAYER}{source}.scale", ("mixed parts",)),
    )


def _compressor(output: str, source: str, ratio: str, width: str, key: str) -> tuple[Rule, ...]:
    """Return the rules of a compressor of `ratio` tokens, whose rows are `width` and whose result has `key` values."""
    return (
        Rule(f"{_BLOCK}{output}_kv.weight", source + "kv_proj.weight", (width, "hidden"), ratio),
        Rule(f"{_BLOCK}{output}_gate.weight", source + "gate_proj.weight", (width, "hidden"), ratio),
        Rule(f"{_BLOCK}{output}_ape.weight", source + "position_bias", (ratio, width), ratio),
        Rule(f"{_BLOCK}{output}_norm.weight", source + "kv_norm.weight", (key,), ratio),
    )


def _joining(source: str, when: str) -> tuple[Rule, ...]:
    """Return the rules of what makes one of the streams at the end: prediction has its own, under the same names."""
    return (
        Rule("output_hc_fn.weight", f"{source}.hc_fn", ("streams", "streams hidden"), when),
        Rule("output_hc_base.weight", f"{source}.hc_base", ("streams",), when),
        Rule("output_hc_scale.weight", f"{source}.hc_scale", ("1",), when),
    )


RULES = Rules(
    first=(Rule("token_embd.weight", "model.embed_tokens.weight", ("vocab", "hidden")),),
    layer=(
        *_mixing("hc_attn", "attn_hc"),
        Rule(_BLOCK + "attn_norm.weight", _LAYER + "input_layernorm.weight", ("hidden",)),
        Rule(_BLOCK + "attn_sinks.weight", _ATTENTION + "sinks", ("heads",)),
        Rule(_BLOCK + "attn_q_a.weight", _ATTENTION + "q_a_proj.weight", ("q_rank", "hidden")),
        Rule(_BLOCK + "attn_q_a_norm.weight", _ATTENTION + "q_a_norm.weight", ("q_rank",)),
        Rule(_BLOCK + "attn_q_b.weight", _ATTENTION + "q_b_proj.weight", ("q_rows", "q_rank")),
        Rule(_BLOCK + "attn_kv.weight", _ATTENTION + "kv_proj.weight", ("head", "hidden")),
        Rule(_BLOCK + "attn_kv_a_norm.weight", _ATTENTION + "kv_norm.weight", ("head",)),
        Rule(_BLOCK + "attn_output_a.weight", _ATTENTION + "o_a_proj.weight", ("o_rows", "group")),
        Rule(_BLOCK + "attn_output_b.weight", _ATTENTION + "o_b_proj.weight", ("hidden", "o_rows")),
        *_compressor("attn_compressor", _COMPRESSOR, "csa", "2 head", "head"),
        *_compressor("attn_compressor", _COMPRESSOR, "hca", "head", "head"),
        Rule(_BLOCK + "indexer.proj.weight", _INDEXER + "scorer.weights_proj.weight", ("index_heads", "hidden"), "csa"),
        Rule(_BLOCK + "indexer.attn_q_b.weight", _INDEXER + "q_b_proj.weight", ("index_q_rows", "q_rank"), "csa"),
        *_compressor("indexer_compressor", _INDEXER, "csa", "2 index_key", "index_key"),
        *_mixing("hc_ffn", "ffn_hc"),
        Rule(_BLOCK + "ffn_norm.weight", _LAYER + "post_attention_layernorm.weight", ("hidden",)),
        Rule(_BLOCK + "ffn_gate_inp.weight", _LAYER + "mlp.gate.weight", ("experts", "hidden")),
        Rule(_BLOCK + "ffn_gate_tid2eid.weight", _LAYER + "mlp.gate.tid2eid", ("vocab", "experts_used"), "by id"),
        Rule(_BLOCK + "exp_probs_b.bias", _LAYER + "mlp.gate.e_score_correction_bias", ("experts",), "by score"),
        Rule(
            _BLOCK + "exp_probs_b_vl.bias",
            _LAYER + "mlp.gate.e_score_correction_bias_vl",
            ("experts",),
            optional="the bias of images",
        ),
        Rule(_BLOCK + "ffn_gate_exps.weight", _EXPERT + "gate_proj.weight", ("expert_ffn", "hidden"), form=stack),
        Rule(_BLOCK + "ffn_down_exps.weight", _EXPERT + "down_proj.weight", ("hidden", "expert_ffn"), form=stack),
        Rule(_BLOCK + "ffn_up_exps.weight", _EXPERT + "up_proj.weight", ("expert_ffn", "hidden"), form=stack),
        Rule(_BLOCK + "ffn_gate_shexp.weight", _SHARED + "gate_proj.weight", ("shared_ffn", "hidden")),
        Rule(_BLOCK + "ffn_down_shexp.weight", _SHARED + "down_proj.weight", ("hidden", "shared_ffn")),
        Rule(_BLOCK + "ffn_up_shexp.weight", _SHARED + "up_proj.weight", ("shared_ffn", "hidden")),
        *prediction.RULES,
    ),
    last=(
        *_joining("model.hc_head", WHOLE),
        *_joining(_LAYER + "hc_head", ALONE),
        Rule("output_norm.weight", "model.norm.weight", ("hidden",)),
        Rule("output.weight", HEAD, ("vocab", "hidden"), "untied"),
    ),
)


def dimensions(config: Config) -> Dimensions:
    """Return the sizes the rules name."""
    heads, head, groups = (config.positive(key) for key in ("num_attention_heads", "head_dim", "o_groups"))
    hidden, streams, expert_ffn = (
        config.positive("hidden_size"),
        _streams(config),
        config.positive("moe_intermediate_size"),
    )
    index_heads, index_key = config.positive("index_n_heads"), config.positive("index_head_dim")
    if heads % groups:
        raise config.refuse("o_groups", f"a divisor of num_attention_heads ({heads})", groups)
    return {
        "vocab": config.positive("vocab_size"),
        "hidden": hidden, "2 hidden": 2 * hidden, "streams": streams, "streams hidden": streams * hidden, "1": 1,
        "mixes": (2 + streams) * streams, "mixed parts": 3,
        "heads": heads, "head": head, "2 head": 2 * head, "csa": CSA, "hca": HCA,
        "q_rank": config.positive("q_lora_rank"), "q_rows": heads * head,
        "group": heads * head // groups, "o_rows": groups * config.positive("o_lora_rank"),
        "index_heads": index_heads, "index_key": index_key, "2 index_key": 2 * index_key,
        "index_q_rows": index_heads * index_key,
        "experts": config.positive("n_routed_experts"), "experts_used": config.positive("num_experts_per_tok"),
        "expert_ffn": expert_ffn, "shared_ffn": expert_ffn * config.positive("n_shared_experts"),
    }  # fmt: skip


def conditions(config: Config, layer: int | None) -> frozenset[str]:
    """Return what holds for the model or for a layer of it."""
    if layer is None:
        return frozenset() if config.flag("tie_word_embeddings", default=False) else frozenset({"untied"})
    held = {CSA: {"csa"}, HCA: {"hca"}}.get(ratios(config, layer + 1)[layer], set())
    return prediction.conditions(config, layer) | held | {"by id" if layer < hash_layers(config) else "by score"}


def ratios(config: Config, count: int = 0) -> list[int]:
    """Return how many tokens each of `count` layers, or more, compresses to one, 0 for none.

    The list may go on with prediction layers, which have a window alone; where it does not, it is filled up.
    """
    layers = config.positive("num_hidden_layers")
    by_name = not config.has("compress_ratios") and config.has("layer_types")
    key = "layer_types" if by_name else "compress_ratios"
    known = LAYER_TYPES if by_name else {ratio: ratio for ratio in LAYER_TYPES.values()}
    stated = config.content.get(key)
    listed = stated if isinstance(stated, list) else []
    strange = [one for one in listed if type(one) not in (int, str) or one not in known]
    if strange or len(listed) < layers:
        expected = f"for each of {layers} layers one of {', '.join(map(str, known))}"
        raise config.refuse(key, expected, strange[0] if strange else stated)
    _check_rates(config)
    if any(known[one] != WINDOW for one in listed[layers:count]):
        raise config.refuse(key, f"{WINDOW} for a layer of multi-token prediction", listed[layers:count])
    return [known[one] for one in listed] + [WINDOW] * (count - len(listed))


def _check_rates(config: Config) -> None:
    """Refuse other ratios under the same words, as transformers can state them."""
    stated = config.section("compress_rates")
    for kind, ratio in LAYER_TYPES.items():
        if stated.has(kind) and stated.integer(kind) != ratio:
            raise stated.refuse(f"compress_rates.{kind}", ratio, stated.content[kind], "is not what readers know")


def hash_layers(config: Config) -> int:
    """Return how many layers, the first ones, choose experts by a token's id."""
    kinds = config.content.get("mlp_layer_types")
    if config.has("num_hash_layers") or not isinstance(kinds, list):
        return config.integer("num_hash_layers")
    count = sum(1 for _ in takewhile(lambda kind: kind == "hash_moe", kinds))
    if kinds != ["hash_moe"] * count + ["moe"] * (len(kinds) - count):
        raise config.refuse("mlp_layer_types", "hash_moe first, then moe", kinds, "cannot be expressed")
    return count


def drops(config: Config, names: Container[str]) -> tuple[Drop, ...]:
    """Return what a file for this configuration does without."""
    found = [
        Drop(r"(.+\.)?mtp\..+", "a draft model (DSpark), which is a file of its own in llama.cpp; no option writes it"),
        Drop(r"(aligner|vision|vision_tower|image_\w+)\b.*", "vision, which needs an mmproj file"),
    ]
    if layers := "|".join(map(str, range(hash_layers(config)))):
        bias = rf"model\.layers\.({layers})\.mlp\.gate\.e_score_correction_bias"
        found.append(Drop(bias, "not used where experts are chosen by a token's id"))
    if predicting := "|".join(map(str, prediction.found(config, names))):
        own = r"embed_tokens\.weight|[eh]norm\.weight|eh_proj\.weight|shared_head\..+|hc_head\..+"
        block = r"(input|post_attention)_layernorm\.weight|(self_attn|mlp|attn_hc|ffn_hc)\..+"
        reason = "multi-token prediction, which is a file of its own: --mtp only writes it"
        found.append(Drop(rf"model\.layers\.({predicting})\.({own}|{block})", reason))
    if config.flag("tie_word_embeddings", default=False):
        found.append(Drop(r"lm_head\.weight", "tied to the token embeddings"))
    return tuple(found)


def metadata(config: Config, layers: Layers) -> dict[str, Value]:
    """Return the deepseek4 keys; InputError for a configuration that they cannot express."""
    dims = dimensions(config)
    config.choice("hidden_act", ("silu",), "silu")
    values: dict[str, Value] = {
        "block_count": u32(layers.total),
        "context_length": u32(config.positive("max_position_embeddings")),
        "embedding_length": u32(dims["hidden"]),
        "attention.head_count": u32(dims["heads"]),
        "attention.head_count_kv": u32(1),
        **_rope_values(config),
        "attention.layer_norm_rms_epsilon": f32(config.number("rms_norm_eps", 1e-6)),
        **_routing_values(config, layers, dims),
        "attention.key_length": u32(dims["head"]),
        "attention.value_length": u32(dims["head"]),
        "attention.q_lora_rank": u32(dims["q_rank"]),
        "attention.sliding_window": u32(config.positive("sliding_window")),
        "attention.indexer.head_count": u32(dims["index_heads"]),
        "attention.indexer.key_length": u32(dims["index_key"]),
        "attention.indexer.top_k": u32(config.positive("index_topk")),
        "attention.output_group_count": u32(config.positive("o_groups")),
        "attention.output_lora_rank": u32(config.positive("o_lora_rank")),
        "attention.compress_ratios": array(Kind.I32, ratios(config, layers.total)),
        "hyper_connection.count": u32(dims["streams"]),
        "hyper_connection.sinkhorn_iterations": u32(config.positive("hc_sinkhorn_iters")),
        "hyper_connection.epsilon": f32(config.number("hc_eps")),
        "hash_layer_count": u32(hash_layers(config)),
        "embedding_length_out": u32(dims["streams hidden"]),
        **prediction.values(layers),
        "vocab_size": u32(dims["vocab"]),  # llama.cpp does without; another engine of these files asks for it
    }
    return {f"{ARCHITECTURE}.{key}": value for key, value in values.items()}


def _routing_values(config: Config, layers: Layers, dims: Dimensions) -> dict[str, Value]:
    config.choice("scoring_func", ("sqrtsoftplus",), "sqrtsoftplus")
    config.choice("topk_method", ("noaux_tc",), "noaux_tc")
    limit = array(Kind.F32, [config.number("swiglu_limit")] * layers.total)
    return {
        "expert_count": u32(dims["experts"]),
        "expert_used_count": u32(dims["experts_used"]),
        "expert_gating_func": u32(SQRT_SOFTPLUS),
        "expert_feed_forward_length": u32(dims["expert_ffn"]),
        "expert_shared_count": u32(config.positive("n_shared_experts")),
        "expert_weights_scale": f32(config.number("routed_scaling_factor", 1.0)),
        "expert_weights_norm": boolean(config.flag("norm_topk_prob", default=True)),
        "swiglu_clamp_exp": limit,
        "swiglu_clamp_shexp": limit,
    }


def _rope_values(config: Config) -> dict[str, Value]:
    """Return the keys of both rotations: that of layers without compression, and that of layers with, which is scaled.

    transformers 5 has them as rope_parameters.main and .compress, DeepSeek as rope_theta, and compress_rope_theta with
    rope_scaling.
    """
    parameters = config.section("rope_parameters")
    main, compressed = parameters.section("main"), parameters.section("compress")
    scaling = compressed if compressed.content else config.section("rope_scaling")
    theta = main.number("rope_theta", config.number("rope_theta", 10000.0))
    compressed_theta = compressed.number("rope_theta", config.number("compress_rope_theta", theta))
    return {
        **_scaling_values(config, scaling),
        "rope.freq_base": f32(theta),
        "rope.dimension_count": u32(_rotated(config, main)),
        "attention.compress_rope_freq_base": f32(compressed_theta),
    }


def _rotated(config: Config, main: Config) -> int:
    """Return how many values of a head are rotated, the last ones."""
    if config.has("qk_rope_head_dim"):
        return config.positive("qk_rope_head_dim")
    fraction = main.number("partial_rotary_factor", config.number("partial_rotary_factor", 0.125))
    return int(config.positive("head_dim") * fraction)


def _scaling_values(config: Config, scaling: Config) -> dict[str, Value]:
    kind = scaling.choice("rope_type" if scaling.has("rope_type") else "type", ("yarn", "default"), "default")
    if kind == "default":
        return {}
    if scaling.number("attention_factor", 1.0) != 1.0:
        what = "is not what readers of this architecture take it for, and no key can tell them,"
        raise scaling.refuse("attention_factor", 1.0, scaling.content["attention_factor"], what)
    limit = config.positive("max_position_embeddings")
    return {
        "rope.scaling.type": string("yarn"),
        "rope.scaling.factor": f32(scaling.number("factor")),
        "rope.scaling.original_context_length": u32(scaling.positive("original_max_position_embeddings", limit)),
        "rope.scaling.yarn_beta_fast": f32(scaling.number("beta_fast", 32.0)),
        "rope.scaling.yarn_beta_slow": f32(scaling.number("beta_slow", 1.0)),
    }


def _streams(config: Config) -> int:
    streams = config.positive("hc_mult")
    if streams != STREAMS:
        raise config.refuse("hc_mult", STREAMS, streams, "is not what readers know")
    return streams


FAMILY = Family(
    architecture=ARCHITECTURE,
    classes=frozenset({"DeepseekV4ForCausalLM"}),
    rules=RULES,
    layers_in=ordinary_layers,
    dimensions=dimensions,
    conditions=conditions,
    drops=drops,
    metadata=metadata,
    # It ships no chat template: the published prompt script writes the bos, and some of its files say there is none.
    bos_first=NAME,
    apart="what joins its streams in the end has the names of what joins the model's",
    template="deepseek4.jinja",
    fixed={".nextn.eh_proj.weight": "Q8_0", "FP8": "Q8_0", "BF16": "BF16", "F32": "F32", "MXFP4": "MXFP4"},
)
