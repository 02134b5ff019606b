"""The MLA model that a config.json describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.forward.model import (
    BEST,
    BEST_TWO,
    BETA_FAST,
    BETA_SLOW,
    Indexer,
    Linear,
    MlaModel,
    Routing,
    Temperature,
    Yarn,
    growth,
)

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from gguf_mla.sources.config import Config


MOST_LAYERS = 1 << 12  # far more than any model has; lists of that length are made before tensors are counted
LATENT_EPS = 1e-6  # the original norms the compressed q and kv with this, whatever rms_norm_eps says
KINDS = ("yarn", "linear", "default")  # of stretched positions
PREDICTORS = 8  # layers after the last that are looked at for multi-token prediction
# The classes with an indexer: whether it rotates neighbouring pairs, where the configuration does not say.
INTERLEAVED = {"DeepseekV32ForCausalLM": False, "GlmMoeDsaForCausalLM": True}
# What a class means by a configuration that says nothing of these, as transformers' classes have it.
_MISTRAL = {"topk_method": "greedy", "norm_topk_prob": True}
UNSAID: Mapping[str | None, Mapping[str, object]] = {
    "DeepseekV2ForCausalLM": {"topk_method": "greedy"},
    "Mistral3ForConditionalGeneration": _MISTRAL,
    "Mistral4ForCausalLM": _MISTRAL,
    "MistralLarge3ForCausalLM": _MISTRAL,
    "YoutuForCausalLM": {"tie_word_embeddings": True},
}
LISTED = {"full": True, "F": True, "shared": False, "S": False}  # a layer in indexer_types or index_topk_pattern


def model_of_config(config: Config, names: Container[str] = ()) -> MlaModel:
    """Return the model that a config.json of the family describes.

    `names` are the checkpoint's tensors: a layer after the last predicts if it has eh_proj, whatever
    num_nextn_predict_layers says.
    """
    config = config.with_defaults(UNSAID.get(config.first("architectures"), {}))
    layers = config_layers(config)
    experts = config.integer("n_routed_experts", 0)  # none: all layers are dense, whatever else is said of experts
    return MlaModel(
        layers=layers,
        vocab=config.positive("vocab_size"),
        hidden=config.positive("hidden_size"),
        heads=config.positive("num_attention_heads"),
        nope=config.positive("qk_nope_head_dim"),
        rope=config.positive("qk_rope_head_dim"),
        value=config.positive("v_head_dim"),
        kv_rank=config.positive("kv_lora_rank"),
        q_rank=config.integer("q_lora_rank", 0),
        ffn=config.positive("intermediate_size"),
        dense_layers=_dense_layers(config) if experts else layers,
        expert_ffn=config.positive("moe_intermediate_size") if experts else 0,
        shared=config.positive("n_shared_experts") if experts else 0,
        routing=_config_routing(config),
        eps=config.number("rms_norm_eps", 1e-6),
        latent_eps=LATENT_EPS,
        temperature=_config_temperature(config),
        theta=_rope_section(config).number("rope_theta", config.number("rope_theta", 10000.0)),
        yarn=_config_yarn(config),
        linear=_config_linear(config),
        tied=config.flag("tie_word_embeddings", default=False),
        indexer=_config_indexer(config, layers, names),
        predictors=config_predictors(config, names),
    )


def config_layers(config: Config) -> int:
    """Return how many layers there are; lists of that length are made before tensors are counted."""
    layers = config.positive("num_hidden_layers")
    if layers > MOST_LAYERS:
        raise config.refuse("num_hidden_layers", f"at most {MOST_LAYERS}", layers)
    return layers


def config_predictors(config: Config, names: Container[str]) -> int:
    """Return how many layers after the last predict, told by their tensors."""
    layers = config_layers(config)
    return sum(f"model.layers.{layers + n}.eh_proj.weight" in names for n in range(PREDICTORS))


def _dense_layers(config: Config) -> int:
    """Return how many layers have no experts; some configurations list each layer instead."""
    types = config.content.get("mlp_layer_types")
    listed = types.count("dense") if isinstance(types, list) else 0
    return config.integer("first_k_dense_replace", listed)


def _config_indexer(config: Config, layers: int, names: Container[str]) -> Indexer | None:
    name = config.first("architectures")
    if name is None or name not in INTERLEAVED:
        return None
    size = config.positive("index_head_dim")
    if size & (size - 1) or size < config.positive("qk_rope_head_dim"):
        raise config.refuse("index_head_dim", "a power of two, not below qk_rope_head_dim", size)
    return Indexer(
        heads=config.positive("index_n_heads"),
        size=size,
        top_k=config.positive("index_topk"),
        interleaved=config.flag("indexer_rope_interleave", default=INTERLEAVED[name]),
        own_layers=_own_indexers(config, layers) if INTERLEAVED[name] else (True,) * layers,
        predicting=f"model.layers.{layers}.self_attn.indexer.wk.weight" in names,
    )


def _own_indexers(config: Config, layers: int) -> tuple[bool, ...]:
    """Return which layers of a GLM-5 choose for themselves; the others share the choice of the one before.

    Where they are not listed one by one, the first `index_skip_topk_offset` layers choose, and from the last of these
    on every `index_topk_freq`-th. Source: the fields of transformers' GlmMoeDsaConfig.
    """
    listed = config.content.get("indexer_types") or config.content.get("index_topk_pattern")
    if listed is None:
        first, every = config.integer("index_skip_topk_offset", 2), config.integer("index_topk_freq", 1)
        later = range(first - 1, layers, max(every, 1))
        return tuple(layer < first or layer in later for layer in range(layers))
    own = [LISTED.get(str(entry)) for entry in listed] if isinstance(listed, (list, str)) else []
    if len(own) != layers or None in own or not own[0]:
        raise config.refuse("indexer_types", f'"full" and {layers - 1} times "full" or "shared"', listed)
    return tuple(map(bool, own))


def _config_routing(config: Config) -> Routing:
    method = config.choice("topk_method", ("greedy", "group_limited_greedy", "noaux_tc"), "noaux_tc")
    experts = config.integer("n_routed_experts", 0)
    grouped, corrected = method != "greedy" and experts > 0, method == "noaux_tc"
    return Routing(
        experts=experts,
        used=config.positive("num_experts_per_tok") if experts else 0,
        groups=config.positive("n_group", 1) if grouped else 1,
        groups_used=config.positive("topk_group", 1) if grouped else 1,
        score=config.choice("scoring_func", ("softmax", "sigmoid"), "sigmoid" if corrected else "softmax"),
        group_score=BEST_TWO if corrected else BEST,
        normalised=config.flag("norm_topk_prob", default=corrected),
        scale=config.number("routed_scaling_factor", 1.0),
        corrected=corrected,
    )


def _rope_section(config: Config) -> Config:
    return config.section("rope_parameters" if config.has("rope_parameters") else "rope_scaling")


def scaling_kind(section: Config, *kinds: str) -> str:
    """Return how positions are stretched, one of `kinds`; "default" where nothing is said of it."""
    return section.choice("rope_type" if section.has("rope_type") else "type", kinds, "default")


def original_length(config: Config, section: Config) -> int:
    """Return how many positions there were before YaRN stretched them."""
    longest = config.positive("max_position_embeddings", 1 << 31)
    return section.positive("original_max_position_embeddings", longest)


def _config_linear(config: Config) -> Linear | None:
    section = _rope_section(config)
    return Linear(section.number("factor")) if scaling_kind(section, *KINDS) == "linear" else None


def _config_yarn(config: Config) -> Yarn | None:
    """Return how positions are stretched, with the scales that transformers computes."""
    section = _rope_section(config)
    if scaling_kind(section, *KINDS) != "yarn":
        return None
    factor, mscale, all_dim = (
        section.number("factor"),
        section.number("mscale", 0.0),
        section.number("mscale_all_dim", 0.0),
    )
    rotated = growth(factor, 1.0)
    if mscale and all_dim:
        if growth(factor, all_dim) <= 0:
            raise section.refuse("mscale_all_dim", "a number that leaves attention a scale", all_dim)
        rotated = growth(factor, mscale) / growth(factor, all_dim)
    return Yarn(
        factor=factor,
        original=original_length(config, section),
        softmax=growth(factor, all_dim) ** 2,
        rotated=section.number("attention_factor", rotated),
        fast=section.number("beta_fast", BETA_FAST),
        slow=section.number("beta_slow", BETA_SLOW),
    )


def _config_temperature(config: Config) -> Temperature | None:
    section, own = _rope_section(config), config.section("llama_4_scaling")
    scale = own.number("beta", section.number("llama_4_scaling_beta", 0.0))
    return Temperature(scale, original_length(config, own if own.content else section)) if scale else None
