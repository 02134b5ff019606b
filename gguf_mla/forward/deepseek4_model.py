"""What a DeepSeek-V4 is: its sizes and constants, from config.json or from a GGUF file's metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gguf_mla.forward.compressed import CSA, HCA, WINDOW, Shape, Turning
from gguf_mla.forward.model import BEST, BETA_FAST, BETA_SLOW, Model, Routing, Yarn
from gguf_mla.forward.of_config import config_layers, config_predictors, original_length, scaling_kind
from gguf_mla.forward.of_gguf import Keys

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from gguf_mla.container.reader import GgufFile
    from gguf_mla.sources.config import Config

RATIOS = {"sliding_attention": WINDOW, "compressed_sparse_attention": CSA, "heavily_compressed_attention": HCA}
SCORE, GATE = "sqrtsoftplus", 4


@dataclass(frozen=True, kw_only=True)
class V4Model(Model):
    """A DeepSeek-V4; `theta` is the base of layers without compression, `yarn` stretches only the others.

    head            values of a key, which all heads share
    ratios          how many tokens each layer compresses to an entry, 0 for none; 0 for those that predict
    by_id           how many layers, the first ones, choose experts by a token's id
    floor, rounds   of the mixing of streams
    sees            whether it is the text of a model that also sees: images have a bias that text does not use
    """

    architecture: ClassVar[str] = "deepseek4"

    head: int
    ratios: tuple[int, ...]
    window: int
    groups: int
    o_rank: int
    compressed_theta: float
    index_heads: int
    index_key: int
    top_k: int
    by_id: int
    streams: int
    floor: float
    rounds: int
    sees: bool = False

    @property
    def state_shape(self) -> tuple[int, ...]:
        """A token has several streams."""
        return (self.streams, self.hidden)

    @property
    def attention_width(self) -> int:
        """About how many values a token takes: its streams, before and after; heads come a sequence at a time."""
        return 4 * self.streams * self.hidden

    def size(self, name: str, layer: int | None = None) -> int:
        """Return a tensor dimension by its name; `ratio` and those made of it are a layer's."""
        ratio = 0 if layer is None else self.ratios[layer]
        own = {"ratio": ratio, "entry": self.head * (2 if ratio == CSA else 1)}
        return own[name] if name in own else super().size(name, layer)

    def derived_sizes(self) -> dict[str, int]:
        """Return the dimensions that are not fields but made of them."""
        return super().derived_sizes() | {
            "used": self.routing.used,
            "1": 1,
            "3": 3,
            "mixes": (2 + self.streams) * self.streams,
            "all streams": self.streams * self.hidden,
            "q_rows": self.heads * self.head,
            "o_rows": self.groups * self.o_rank,
            "group": self.heads * self.head // self.groups,
            "index_rows": self.index_heads * self.index_key,
            "2 index_key": 2 * self.index_key,
        }

    def attention_products(self, tokens: int) -> int:
        """Return how many products the attention of a layer adds up, one after the other, over so many tokens."""
        return super().attention_products(tokens) + 2 * self.head + self.size("group") + self.size("o_rows")

    def impossible(self) -> Iterator[tuple[str, str, object]]:
        """Yield what the forward pass cannot compute with."""
        yield from super().impossible()
        if not self.compressed_theta > 1:
            yield "the base of the rotation's angles in compressed layers", "more than 1", self.compressed_theta
        if self.heads % self.groups:
            yield "groups of heads of the output", f"a divisor of {self.heads} heads", self.groups
        if self.rope > (least := min(self.head, self.index_key)):
            yield "values of a key that are rotated", f"at most its {least}, the indexer's keys counted", self.rope

    def attends_to_all(self, layer: int) -> bool:
        """Whether no indexer chooses what a layer attends to."""
        return self.ratios[layer] != CSA

    def shape(self, layer: int) -> Shape:
        """Return what a layer's attention is."""
        ratio = self.ratios[layer]
        theta, yarn = (self.compressed_theta, self.yarn) if ratio else (self.theta, None)
        return Shape(
            ratio, self.window, self.heads, self.head, self.groups, self.index_heads, self.index_key, self.top_k,
            self.eps, Turning(self.rope, theta, yarn),
        )  # fmt: skip


def of_config(config: Config, names: Container[str] = ()) -> V4Model:
    """Return the model that a config.json describes, as DeepSeek writes it or transformers 5."""
    count, hidden, predictors = config_layers(config), config.positive("hidden_size"), config_predictors(config, names)
    main, scaled = (config.section("rope_parameters").section(part) for part in ("main", "compress"))
    expert_ffn, head = config.positive("moe_intermediate_size"), config.positive("head_dim")
    theta = main.number("rope_theta", config.number("rope_theta", 10000.0))
    fraction = main.number("partial_rotary_factor", config.number("partial_rotary_factor", 0.125))
    return V4Model(
        layers=count,
        vocab=config.positive("vocab_size"),
        hidden=hidden,
        heads=config.positive("num_attention_heads"),
        rope=config.positive("qk_rope_head_dim", int(head * fraction)),
        q_rank=config.positive("q_lora_rank"),
        ffn=expert_ffn, dense_layers=0, expert_ffn=expert_ffn,
        shared=config.positive("n_shared_experts"),
        routing=_routing(
            config.positive("n_routed_experts"), config.positive("num_experts_per_tok"),
            config.number("routed_scaling_factor", 1.0), config.flag("norm_topk_prob", default=True),
        ),
        eps=config.number("rms_norm_eps", 1e-6),
        theta=theta,
        yarn=_config_yarn(config, scaled if scaled.content else config.section("rope_scaling")),
        tied=config.flag("tie_word_embeddings", default=False),
        head=head,
        ratios=_config_ratios(config, count, predictors),
        window=config.positive("sliding_window"),
        groups=config.positive("o_groups"),
        o_rank=config.positive("o_lora_rank"),
        compressed_theta=scaled.number("rope_theta", config.number("compress_rope_theta", theta)),
        index_heads=config.positive("index_n_heads"),
        index_key=config.positive("index_head_dim"),
        top_k=config.positive("index_topk"),
        by_id=_hash_layers(config),
        streams=config.positive("hc_mult"),
        floor=config.number("hc_eps"),
        rounds=config.positive("hc_sinkhorn_iters"),
        limit=config.number("swiglu_limit"),
        sees="model.layers.0.mlp.gate.e_score_correction_bias_vl" in names,
        predictors=predictors,
    )  # fmt: skip


def _routing(experts: int, used: int, scale: float, normalised: bool) -> Routing:
    return Routing(
        experts=experts, used=used, groups=1, groups_used=1, score=SCORE, group_score=BEST, normalised=normalised,
        scale=scale, corrected=True,
    )  # fmt: skip


def _hash_layers(config: Config) -> int:
    """Return how many layers choose experts by a token's id; where each is listed, they have to be the first."""
    kinds = config.content.get("mlp_layer_types")
    if config.has("num_hash_layers") or not isinstance(kinds, list):
        return config.integer("num_hash_layers", 0)
    count = kinds.count("hash_moe")
    if "hash_moe" in kinds[count:]:
        raise config.refuse("mlp_layer_types", "hash_moe in the first layers alone", kinds)
    return count


def _config_ratios(config: Config, layers: int, predictors: int) -> tuple[int, ...]:
    """Return the ratio of every layer; those that predict have a window alone."""
    stated = config.content.get("compress_ratios") or config.content.get("layer_types")
    listed = stated[:layers] if isinstance(stated, list) else []
    found = [RATIOS.get(one) if isinstance(one, str) else one for one in listed]
    if len(found) != layers or any(type(one) is not int or one not in RATIOS.values() for one in found):
        raise config.refuse("compress_ratios", f"{layers} times 0, 4 or 128", stated)
    return (*(int(str(one)) for one in found), *[WINDOW] * predictors)


def _config_yarn(config: Config, section: Config) -> Yarn | None:
    if scaling_kind(section, "yarn", "default") != "yarn":
        return None
    return Yarn(
        factor=section.number("factor"),
        original=original_length(config, section),
        fast=section.number("beta_fast", BETA_FAST),
        slow=section.number("beta_slow", BETA_SLOW),
    )


def of_gguf(file: GgufFile) -> V4Model:
    """Return the model that a file's metadata describe, as its readers take them."""
    keys = Keys(file.metadata, file.path, file.tensors)
    blocks, expert_ffn = keys.blocks(), keys.integer("expert_feed_forward_length")
    predictors = keys.count("nextn_predict_layers", 0)
    if predictors and not (keys.alone and predictors < blocks):
        raise keys.refuse("nextn_predict_layers", "none in a file of the model's own layers", predictors)
    if keys.count("expert_gating_func", 0) != GATE:
        raise keys.refuse("expert_gating_func", f"{GATE} (sqrtsoftplus)", keys.get("expert_gating_func"))
    return V4Model(
        layers=blocks - predictors,
        vocab=keys.length("tokenizer.ggml.tokens") or keys.integer("vocab_size"),
        hidden=keys.integer("embedding_length"),
        heads=keys.integer("attention.head_count"),
        rope=keys.integer("rope.dimension_count"),
        q_rank=keys.integer("attention.q_lora_rank"),
        ffn=expert_ffn, dense_layers=0, expert_ffn=expert_ffn,
        shared=keys.integer("expert_shared_count"),
        routing=_routing(
            keys.integer("expert_count"), keys.integer("expert_used_count"), keys.number("expert_weights_scale", 1.0),
            keys.flag("expert_weights_norm"),
        ),
        eps=keys.number("attention.layer_norm_rms_epsilon"),
        theta=keys.number("rope.freq_base"),
        yarn=_gguf_yarn(keys),
        tied="output.weight" not in file.tensors,
        head=keys.integer("attention.key_length"),
        ratios=_gguf_ratios(keys, blocks, predictors),
        window=keys.integer("attention.sliding_window"),
        groups=keys.integer("attention.output_group_count"),
        o_rank=keys.integer("attention.output_lora_rank"),
        compressed_theta=keys.number("attention.compress_rope_freq_base"),
        index_heads=keys.integer("attention.indexer.head_count"),
        index_key=keys.integer("attention.indexer.key_length"),
        top_k=keys.integer("attention.indexer.top_k"),
        by_id=keys.whole("hash_layer_count"),
        streams=keys.integer("hyper_connection.count"),
        floor=keys.number("hyper_connection.epsilon"),
        rounds=keys.integer("hyper_connection.sinkhorn_iterations"),
        limit=_gguf_limit(keys),
        sees="blk.0.exp_probs_b_vl.bias" in file.tensors,
        predictors=predictors,
        alone=keys.alone,
    )  # fmt: skip


def _gguf_ratios(keys: Keys, layers: int, predictors: int) -> tuple[int, ...]:
    stated = keys.get("attention.compress_ratios")
    listed = list(stated[:layers]) if keys.length("attention.compress_ratios") >= layers else []
    if predictors and any(listed[layers - predictors :]):
        raise keys.refuse("attention.compress_ratios", f"{predictors} times 0 for layers that predict", listed)
    if len(listed) != layers or any(type(one) is not int or one not in RATIOS.values() for one in listed):
        raise keys.refuse("attention.compress_ratios", f"{layers} times 0, 4 or 128", stated)
    return tuple(listed)


def _gguf_limit(keys: Keys) -> float:
    """Return the limit of every layer's experts; files can have others for some layers, and models do not."""
    stated = keys.get("swiglu_clamp_exp") if keys.length("swiglu_clamp_exp") else None
    if not stated or len(set(stated)) != 1 or not isinstance(stated[0], float):
        raise keys.refuse("swiglu_clamp_exp", "one number for all layers", stated)
    return float(stated[0])


def _gguf_yarn(keys: Keys) -> Yarn | None:
    if keys.get("rope.scaling.type", "none") != "yarn":
        return None
    return Yarn(
        factor=keys.number("rope.scaling.factor"),
        original=keys.integer("rope.scaling.original_context_length"),
        fast=keys.number("rope.scaling.yarn_beta_fast", BETA_FAST),
        slow=keys.number("rope.scaling.yarn_beta_slow", BETA_SLOW),
    )
