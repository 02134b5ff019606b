"""What an MLA model is: its sizes and constants, from config.json or from a GGUF file's metadata.

Both are read here from the published definitions, without the converter's rules, so that a mistake there shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Container, Mapping
    from pathlib import Path

    from gguf_mla.container.reader import GgufFile
    from gguf_mla.families.config import Config

LATENT_EPS = 1e-6  # the original norms the compressed q and kv with this, whatever rms_norm_eps says
BETA_FAST, BETA_SLOW = 32.0, 1.0
GATES = {1: "softmax", 2: "sigmoid"}
BEST, BEST_TWO = "best", "best two"  # how a group of experts is scored
# Whether the indexer rotates neighbouring pairs, by the names that models with one have in config.json and in GGUF.
INTERLEAVED = {
    "DeepseekV32ForCausalLM": False,
    "deepseek32": False,
    "GlmMoeDsaForCausalLM": True,
    "glm-dsa": True,
}
PREDICTORS = 8  # layers behind the last that are looked at for multi-token prediction


@dataclass(frozen=True)
class Yarn:
    """Rope scaling of YaRN; `all_dim` is mscale_all_dim, and mscale is the same."""

    factor: float
    original: int
    all_dim: float
    fast: float = BETA_FAST
    slow: float = BETA_SLOW


@dataclass(frozen=True)
class Routing:
    """How a token's experts are chosen and weighted."""

    experts: int
    used: int
    groups: int
    groups_used: int
    score: str
    group_score: str
    normalised: bool
    scale: float
    corrected: bool


@dataclass(frozen=True)
class Indexer:
    """What chooses the tokens that sparse attention reads.

    heads, size  of its queries; all heads share one key of `size` values, whose first `rope` values are rotated
    top_k        how many cached tokens a query attends to
    interleaved  whether it rotates pairs (2i, 2i+1), as GLM's, or (i, i+p/2), as DeepSeek's
    own_layers   whether a layer has one; another uses the choice of the layer before
    fp8          whether queries and keys are rounded as DeepSeek's own code rounds them
    """

    heads: int
    size: int
    top_k: int
    interleaved: bool
    own_layers: tuple[bool, ...]
    fp8: bool = False


@dataclass(frozen=True)
class Model:
    """Sizes and constants in the papers' terms; `q_rank` is 0 where q is projected directly.

    `predictors` are layers of multi-token prediction behind the `layers`.
    """

    layers: int
    vocab: int
    hidden: int
    heads: int
    nope: int
    rope: int
    value: int
    kv_rank: int
    q_rank: int
    ffn: int
    dense_layers: int
    expert_ffn: int
    shared: int
    routing: Routing
    eps: float
    latent_eps: float
    theta: float
    yarn: Yarn | None
    tied: bool
    indexer: Indexer | None = None
    predictors: int = 0

    def size(self, name: str) -> int:
        """Return a tensor dimension by the name it has in `tensors.ROLES`."""
        derived = {
            "experts": self.routing.experts,
            "nope+rope": self.nope + self.rope,
            "q_rows": self.heads * (self.nope + self.rope),
            "kv_rank+rope": self.kv_rank + self.rope,
            "kv_b_rows": self.heads * (self.nope + self.value),
            "o_cols": self.heads * self.value,
            "shared_ffn": self.shared * self.expert_ffn,
            "2 hidden": 2 * self.hidden,
        }
        if self.indexer is not None:
            heads, size = self.indexer.heads, self.indexer.size
            derived |= {"index_heads": heads, "index_size": size, "index_rows": heads * size}
        return derived[name] if name in derived else int(getattr(self, name))

    def is_dense(self, layer: int) -> bool:
        """Whether a layer has one MLP instead of experts."""
        return layer < self.dense_layers

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has an indexer of its own; a prediction layer of a sparse model always has."""
        return self.indexer is not None and (layer >= self.layers or self.indexer.own_layers[layer])

    @property
    def blocks(self) -> int:
        """The number of layers with those of multi-token prediction."""
        return self.layers + self.predictors

    @property
    def softmax_scale(self) -> float:
        """(n+p)^-1/2 · g(s, mscale_all_dim)², g(s, m) = 1 + 0.1·m·ln s. Source: DeepSeek-V3's modelling code."""
        scale = 1 / math.sqrt(self.nope + self.rope)
        if self.yarn is None or self.yarn.factor <= 1:
            return scale
        return scale * (1 + 0.1 * self.yarn.all_dim * math.log(self.yarn.factor)) ** 2


def model_of_config(config: Config, names: Container[str] = ()) -> Model:
    """Return the model that a config.json of the family describes.

    `names` are the checkpoint's tensors: a layer behind the last predicts if it has eh_proj, whatever
    num_nextn_predict_layers says.
    """
    v2 = config.content.get("architectures") == ["DeepseekV2ForCausalLM"]
    layers = config.positive("num_hidden_layers")
    return Model(
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
        dense_layers=_dense_layers(config),
        expert_ffn=config.positive("moe_intermediate_size"),
        shared=config.positive("n_shared_experts"),
        routing=_config_routing(config, "greedy" if v2 else "noaux_tc"),
        eps=config.number("rms_norm_eps", 1e-6),
        latent_eps=LATENT_EPS,
        theta=_rope_section(config).number("rope_theta", config.number("rope_theta", 10000.0)),
        yarn=_config_yarn(config),
        tied=config.flag("tie_word_embeddings", default=False),
        indexer=_config_indexer(config, layers),
        predictors=sum(f"model.layers.{layers + n}.eh_proj.weight" in names for n in range(PREDICTORS)),
    )


def _dense_layers(config: Config) -> int:
    """Return how many layers have no experts; some configurations list each layer's kind instead."""
    kinds = config.content.get("mlp_layer_types")
    listed = kinds.count("dense") if isinstance(kinds, list) else 0
    return config.integer("first_k_dense_replace", listed)


def _config_indexer(config: Config, layers: int) -> Indexer | None:
    name = (config.content.get("architectures") or [None])[0]
    if name not in INTERLEAVED:
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
    )


def _own_indexers(config: Config, layers: int) -> tuple[bool, ...]:
    """Return which layers of GLM-5 have an indexer: listed by word or letter, or every so many. Source: its config."""
    listed = config.content.get("indexer_types") or config.content.get("index_topk_pattern")
    if listed is None:
        every, first = max(config.integer("index_topk_freq", 1), 1), config.integer("index_skip_topk_offset", 2)
        return tuple(max(layer - first + 1, 0) % every == 0 for layer in range(layers))
    if not isinstance(listed, (list, str)) or len(listed) != layers or listed[0] not in ("full", "F"):
        raise config.refuse("indexer_types", f'"full" and {layers - 1} times "full" or "shared"', listed)
    return tuple(kind in ("full", "F") for kind in listed)


def _config_routing(config: Config, default: str) -> Routing:
    method = config.choice("topk_method", ("greedy", "group_limited_greedy", "noaux_tc"), default)
    grouped, corrected = method != "greedy", method == "noaux_tc"
    return Routing(
        experts=config.positive("n_routed_experts"),
        used=config.positive("num_experts_per_tok"),
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


def _config_yarn(config: Config) -> Yarn | None:
    section = _rope_section(config)
    if "yarn" not in (section.content.get("rope_type"), section.content.get("type")):
        return None
    return Yarn(
        factor=section.number("factor"),
        original=section.positive(
            "original_max_position_embeddings", config.positive("max_position_embeddings", 1 << 31)
        ),
        all_dim=section.number("mscale_all_dim", 0.0),
        fast=section.number("beta_fast", BETA_FAST),
        slow=section.number("beta_slow", BETA_SLOW),
    )


def model_of_gguf(file: GgufFile) -> Model:
    """Return the model that a file of the family describes, as a reader of the file takes it.

    The file says neither how groups are scored nor whether mscale differs from mscale_all_dim: a softmax router's
    groups count by their best expert (V2), a sigmoid router's by their best two (V3), and the two scales are the same.
    """
    keys = Keys(file.metadata, file.path)
    width, rope = keys.integer("attention.key_length_mla", "attention.key_length"), keys.integer("rope.dimension_count")
    eps = keys.number("attention.layer_norm_rms_epsilon")
    blocks, predictors = keys.integer("block_count"), keys.count("nextn_predict_layers", 0)
    if predictors >= blocks:
        raise keys.refuse("nextn_predict_layers", f"less than the {blocks} layers of block_count", predictors)
    layers = blocks - predictors
    return Model(
        layers=layers,
        vocab=len(keys.get("tokenizer.ggml.tokens", ())) or keys.integer("vocab_size"),
        hidden=keys.integer("embedding_length"),
        heads=keys.integer("attention.head_count"),
        nope=width - rope,
        rope=rope,
        value=keys.integer("attention.value_length_mla", "attention.value_length"),
        kv_rank=keys.integer("attention.kv_lora_rank"),
        q_rank=keys.count("attention.q_lora_rank", 0),
        ffn=keys.integer("feed_forward_length"),
        dense_layers=keys.count("leading_dense_block_count", 0),
        expert_ffn=keys.integer("expert_feed_forward_length"),
        shared=keys.integer("expert_shared_count"),
        routing=_gguf_routing(keys, corrected=any(name.endswith("exp_probs_b.bias") for name in file.tensors)),
        eps=eps,
        latent_eps=eps,
        theta=keys.number("rope.freq_base"),
        yarn=_gguf_yarn(keys),
        tied="output.weight" not in file.tensors,
        indexer=_gguf_indexer(keys, layers),
        predictors=predictors,
    )


def _gguf_indexer(keys: Keys, layers: int) -> Indexer | None:
    architecture = keys.metadata.get("general.architecture")
    if architecture not in INTERLEAVED:
        return None
    size = keys.integer("attention.indexer.key_length")
    if size & (size - 1) or size < keys.integer("rope.dimension_count"):
        raise keys.refuse("attention.indexer.key_length", "a power of two, not below rope.dimension_count", size)
    types = keys.get("attention.indexer.types")
    own = [True] * layers if types is None else np.ravel(types).tolist()
    if len(own) != layers or not own[0]:
        raise keys.refuse("attention.indexer.types", f"true and {layers - 1} truth values", own)
    return Indexer(
        heads=keys.integer("attention.indexer.head_count"),
        size=size,
        top_k=keys.integer("attention.indexer.top_k"),
        interleaved=INTERLEAVED[architecture],
        own_layers=tuple(map(bool, own)),
    )


def _gguf_routing(keys: Keys, *, corrected: bool) -> Routing:
    gate = keys.get("expert_gating_func", 1)
    if gate not in GATES:
        raise keys.refuse("expert_gating_func", "1 (softmax) or 2 (sigmoid)", gate)
    return Routing(
        experts=keys.integer("expert_count"),
        used=keys.integer("expert_used_count"),
        groups=keys.count("expert_group_count", 1),
        groups_used=keys.count("expert_group_used_count", 1),
        score=GATES[gate],
        group_score=BEST_TWO if GATES[gate] == "sigmoid" else BEST,
        normalised=bool(keys.get("expert_weights_norm", False)),
        scale=float(keys.get("expert_weights_scale", 1.0)) or 1.0,
        corrected=corrected,
    )


def _gguf_yarn(keys: Keys) -> Yarn | None:
    if keys.get("rope.scaling.type", "none") != "yarn":
        return None
    return Yarn(
        factor=keys.number("rope.scaling.factor"),
        original=keys.integer("rope.scaling.original_context_length"),
        all_dim=float(keys.get("rope.scaling.yarn_log_multiplier", 0.0)) / 0.1,
        fast=float(keys.get("rope.scaling.yarn_beta_fast", BETA_FAST)),
        slow=float(keys.get("rope.scaling.yarn_beta_slow", BETA_SLOW)),
    )


@dataclass(frozen=True)
class Keys:
    """A file's metadata, asked for by type; keys without a section of their own belong to the architecture."""

    metadata: Mapping[str, Any]
    file: Path

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, `default` where the key is absent."""
        return self.metadata.get(self._full(key), default)

    def integer(self, *keys: str) -> int:
        """Return the first of some keys that is there; it has to be a positive whole number."""
        value = next((found for key in keys if (found := self.get(key)) is not None), None)
        if type(value) is not int or not 0 < value < 1 << 32:
            raise self.refuse(keys[0], "a positive whole number", value)
        return value

    def count(self, key: str, default: int) -> int:
        """Return a whole number, `default` where the key is absent."""
        value = self.get(key, default)
        if type(value) is not int or not 0 <= value < 1 << 32:
            raise self.refuse(key, "a whole number", value)
        return value

    def number(self, key: str) -> float:
        """Return a finite number."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.refuse(key, "a number", value)
        return float(value)

    def refuse(self, key: str, expected: object, found: object) -> InputError:
        """Return the error for a key."""
        shown = "nothing" if found is None else found
        return InputError(f"{self._full(key)} cannot be used", file=self.file, expected=expected, found=shown)

    def _full(self, key: str) -> str:
        return key if key.startswith("tokenizer.") else f"{self.metadata.get('general.architecture')}.{key}"
