"""DeepSeek-V4: streams of residuals, compressed attention, experts by token id in the first layers, clamped SwiGLU.

Source: the DeepSeek-V4 report and its published modelling code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from gguf_mla.forward import compressed, layers, streams
from gguf_mla.forward.architecture import Architecture
from gguf_mla.forward.compressed import CSA, HCA, WINDOW, Shape, Turning
from gguf_mla.forward.layers import lookup, mixed, mlp, rms_norm
from gguf_mla.forward.mla import FIRST_ROLES, LAST_ROLES
from gguf_mla.forward.model import BEST, BETA_FAST, BETA_SLOW, Model, Routing, Yarn
from gguf_mla.forward.of_config import config_layers, original_length, scaling_kind
from gguf_mla.forward.of_gguf import Keys
from gguf_mla.forward.tensors import Role, Roles

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from gguf_mla.container.reader import GgufFile
    from gguf_mla.forward.arrays import Floats, Numbers
    from gguf_mla.forward.layers import Pass
    from gguf_mla.sources.config import Config

RATIOS = {"sliding_attention": WINDOW, "compressed_sparse_attention": CSA, "heavily_compressed_attention": HCA}
SCORE, GATE = "sqrtsoftplus", 4


@dataclass(frozen=True, kw_only=True)
class V4Model(Model):
    """A DeepSeek-V4; `theta` is the base of layers without compression, `yarn` stretches only the others.

    head            values of a key, which all heads share
    ratios          how many tokens each layer compresses to an entry, 0 for none
    by_id           how many layers, the first ones, choose experts by a token's id
    limit           of the gate, and of what it multiplies on both sides
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
    limit: float
    sees: bool = False

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

    def shape(self, layer: int) -> Shape:
        """Return what a layer's attention is."""
        ratio = self.ratios[layer]
        theta, yarn = (self.compressed_theta, self.yarn) if ratio else (self.theta, None)
        return Shape(
            ratio, self.window, self.heads, self.head, self.groups, self.index_heads, self.index_key, self.top_k,
            self.eps, Turning(self.rope, theta, yarn),
        )  # fmt: skip


_ATTENTION, _EXPERT, _SHARED = "self_attn.", "mlp.experts.{expert}.", "mlp.shared_experts."
_COMPRESSOR, _INDEXER = _ATTENTION + "compressor.", _ATTENTION + "compressor.indexer."


def _mixing(name: str, checkpoint: str) -> dict[str, Role]:
    return {
        f"{name}_fn.weight": Role(checkpoint + ".fn", ("mixes", "all streams")),
        f"{name}_base.weight": Role(checkpoint + ".base", ("mixes",)),
        f"{name}_scale.weight": Role(checkpoint + ".scale", ("3",)),
    }


def _compressor(name: str, checkpoint: str, entry: str, key: str, where: str) -> dict[str, Role]:
    return {
        f"{name}_kv.weight": Role(checkpoint + "kv_proj.weight", (entry, "hidden"), where),
        f"{name}_gate.weight": Role(checkpoint + "gate_proj.weight", (entry, "hidden"), where),
        f"{name}_ape.weight": Role(checkpoint + "position_bias", ("ratio", entry), where),
        f"{name}_norm.weight": Role(checkpoint + "kv_norm.weight", (key,), where),
    }


LAYER = {
    **_mixing("hc_attn", "attn_hc"),
    "attn_norm.weight": Role("input_layernorm.weight", ("hidden",)),
    "attn_q_a.weight": Role(_ATTENTION + "q_a_proj.weight", ("q_rank", "hidden")),
    "attn_q_a_norm.weight": Role(_ATTENTION + "q_a_norm.weight", ("q_rank",)),
    "attn_q_b.weight": Role(_ATTENTION + "q_b_proj.weight", ("q_rows", "q_rank")),
    "attn_kv.weight": Role(_ATTENTION + "kv_proj.weight", ("head", "hidden")),
    "attn_kv_a_norm.weight": Role(_ATTENTION + "kv_norm.weight", ("head",)),
    **_compressor("attn_compressor", _COMPRESSOR, "entry", "head", "compressed"),
    "indexer.attn_q_b.weight": Role(_INDEXER + "q_b_proj.weight", ("index_rows", "q_rank"), "chosen"),
    "indexer.proj.weight": Role(_INDEXER + "scorer.weights_proj.weight", ("index_heads", "hidden"), "chosen"),
    **_compressor("indexer_compressor", _INDEXER, "2 index_key", "index_key", "chosen"),
    "attn_sinks.weight": Role(_ATTENTION + "sinks", ("heads",)),
    "attn_output_a.weight": Role(_ATTENTION + "o_a_proj.weight", ("o_rows", "group")),
    "attn_output_b.weight": Role(_ATTENTION + "o_b_proj.weight", ("hidden", "o_rows")),
    **_mixing("hc_ffn", "ffn_hc"),
    "ffn_norm.weight": Role("post_attention_layernorm.weight", ("hidden",)),
    "ffn_gate_inp.weight": Role("mlp.gate.weight", ("experts", "hidden")),
    "ffn_gate_tid2eid.weight": Role("mlp.gate.tid2eid", ("vocab", "used"), "by id"),
    "exp_probs_b.bias": Role("mlp.gate.e_score_correction_bias", ("experts",), "by score"),
    "exp_probs_b_vl.bias": Role("mlp.gate.e_score_correction_bias_vl", ("experts",), "sees"),
    "ffn_gate_exps.weight": Role(_EXPERT + "gate_proj.weight", ("experts", "expert_ffn", "hidden")),
    "ffn_up_exps.weight": Role(_EXPERT + "up_proj.weight", ("experts", "expert_ffn", "hidden")),
    "ffn_down_exps.weight": Role(_EXPERT + "down_proj.weight", ("experts", "hidden", "expert_ffn")),
    "ffn_gate_shexp.weight": Role(_SHARED + "gate_proj.weight", ("shared_ffn", "hidden")),
    "ffn_up_shexp.weight": Role(_SHARED + "up_proj.weight", ("shared_ffn", "hidden")),
    "ffn_down_shexp.weight": Role(_SHARED + "down_proj.weight", ("hidden", "shared_ffn")),
}
LAST = {
    "output_hc_fn.weight": Role("model.hc_head.hc_fn", ("streams", "all streams")),
    "output_hc_base.weight": Role("model.hc_head.hc_base", ("streams",)),
    "output_hc_scale.weight": Role("model.hc_head.hc_scale", ("1",)),
    **LAST_ROLES,
}


def conditions(model: V4Model, layer: int | None) -> set[str]:
    """Return which of the roles' `where` hold for a layer, or for the tensors of the model."""
    if layer is None:
        return {"always"} if model.tied else {"always", "untied"}
    ratio = model.ratios[layer]
    held = {"always", "by id" if layer < model.by_id else "by score"}
    held |= {"sees"} if model.sees else set()
    return held | ({"compressed"} if ratio else set()) | ({"chosen"} if ratio == CSA else set())


def embed(pass_: Pass, tokens: Numbers) -> Floats:
    """Return the embeddings of tokens [B, T] in every stream, float32 [B, T, S, hidden]."""
    one = lookup(pass_, "token_embd.weight", tokens)
    return one[:, :, None].expand(-1, -1, _model(pass_).streams, -1).contiguous()


def attend(pass_: Pass, layer: int, state: Floats, tokens: Numbers) -> Floats:
    """Return streams [B, T, S, hidden] after a layer's attention."""
    mixing = _mixed(pass_, f"blk.{layer}.hc_attn", state)
    return mixing.left(attention(pass_, layer, mixing.entered, tokens), state)


def attention(pass_: Pass, layer: int, hidden: Floats, _tokens: Numbers) -> Floats:
    """Return what the attention of a layer adds to hidden states [B, T, hidden]."""
    model, at = _model(pass_), f"blk.{layer}."
    x, shape = rms_norm(hidden, pass_.vector(at + "attn_norm.weight"), model.eps), model.shape(layer)
    own = pass_ if pass_.kept is not None else pass_.keeping()  # each sequence reads all matrices
    return torch.stack([compressed.attention(own, at, sequence, shape) for sequence in x])


def feed(pass_: Pass, layer: int, state: Floats, tokens: Numbers) -> Floats:
    """Return streams [..., S, hidden] after a layer's experts."""
    model, at = _model(pass_), f"blk.{layer}."
    mixing = _mixed(pass_, at + "hc_ffn", state)
    x = rms_norm(mixing.entered, pass_.vector(at + "ffn_norm.weight"), model.eps)
    flat = x.reshape(-1, model.hidden)
    chosen, shares = route(pass_, layer, flat, tokens.reshape(-1))
    added = mixed(pass_, at, flat, chosen, shares, model.limit) + mlp(pass_, at, "_shexp", flat, limit=model.limit)
    return mixing.left(added.reshape(x.shape), state)


def route(pass_: Pass, layer: int, x: Floats, tokens: Numbers) -> tuple[Numbers, Floats]:
    """Return every token's experts and their weights, [N, K], for normed states [N, hidden] of tokens [N]."""
    model, at = _model(pass_), f"blk.{layer}."
    if layer >= model.by_id:
        return layers.routed(pass_, at, x)
    scored = layers.scores(pass_.linear(x, at + "ffn_gate_inp.weight"), model.routing)
    chosen = lookup(pass_, at + "ffn_gate_tid2eid.weight", tokens).to(torch.int64)
    return chosen, layers.shares(scored, chosen, model.routing)


def finish(pass_: Pass, state: Floats) -> Floats:
    """Return the normed output of the last layer, [B, T, hidden]."""
    model = _model(pass_)
    joined = streams.joined(pass_, "output_hc", state, model.eps, model.floor)
    return rms_norm(joined, pass_.vector("output_norm.weight"), model.eps)


def _mixed(pass_: Pass, name: str, state: Floats) -> streams.Mixing:
    model = _model(pass_)
    return streams.mixing(pass_, name, state, model.eps, model.floor, model.rounds)


def _model(pass_: Pass) -> V4Model:
    assert isinstance(pass_.model, V4Model)  # noqa: S101 - only such models name this architecture
    return pass_.model


def of_config(config: Config, names: Container[str] = ()) -> V4Model:
    """Return the model that a config.json describes, as DeepSeek writes it or transformers 5."""
    count, hidden = config_layers(config), config.positive("hidden_size")
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
        ratios=_config_ratios(config, count),
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


def _config_ratios(config: Config, layers: int) -> tuple[int, ...]:
    stated = config.content.get("compress_ratios") or config.content.get("layer_types")
    listed = stated[:layers] if isinstance(stated, list) else []
    found = [RATIOS.get(one) if isinstance(one, str) else one for one in listed]
    if len(found) != layers or any(type(one) is not int or one not in RATIOS.values() for one in found):
        raise config.refuse("compress_ratios", f"{layers} times 0, 4 or 128", stated)
    return tuple(int(str(one)) for one in found)


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
    count, expert_ffn = keys.blocks(), keys.integer("expert_feed_forward_length")
    if keys.count("expert_gating_func", 0) != GATE:
        raise keys.refuse("expert_gating_func", f"{GATE} (sqrtsoftplus)", keys.get("expert_gating_func"))
    return V4Model(
        layers=count,
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
        ratios=_gguf_ratios(keys, count),
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
    )  # fmt: skip


def _gguf_ratios(keys: Keys, layers: int) -> tuple[int, ...]:
    stated = keys.get("attention.compress_ratios")
    listed = list(stated[:layers]) if keys.length("attention.compress_ratios") >= layers else []
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


ARCHITECTURE = Architecture(
    name=V4Model.architecture,
    classes=("DeepseekV4ForCausalLM",),
    gguf_names=("deepseek4",),
    of_config=of_config,
    of_gguf=of_gguf,
    roles=Roles(FIRST_ROLES, LAYER, LAST, "model.layers.{layer}.", conditions),
    attends=(
        "attn_q_a", "attn_q_b", "attn_kv", "attn_compressor_kv", "attn_compressor_gate", "attn_output_a",
        "attn_output_b", "indexer.attn_q_b", "indexer.proj", "indexer_compressor_kv", "indexer_compressor_gate",
    ),
    embed=embed,
    attend=attend,
    feed=feed,
    finish=finish,
    attention=attention,
)  # fmt: skip
