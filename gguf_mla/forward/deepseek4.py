"""DeepSeek-V4: streams of residuals, compressed attention, experts by token id in the first layers, clamped SwiGLU.

Source: the DeepSeek-V4 report and its published modelling code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gguf_mla.forward import compressed, layers, streams
from gguf_mla.forward.architecture import Architecture, Experts, Predicting
from gguf_mla.forward.compressed import CSA
from gguf_mla.forward.deepseek4_model import V4Model, of_config, of_gguf
from gguf_mla.forward.layers import lookup, mixed, mlp, rms_norm
from gguf_mla.forward.mla import FIRST_ROLES, LAST_ROLES
from gguf_mla.forward.tensors import Role, Roles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_mla.forward.arrays import Floats, Numbers
    from gguf_mla.forward.compressed import Shape
    from gguf_mla.forward.layers import Pass

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


def _joining(name: str, checkpoint: str, where: str = "always") -> dict[str, Role]:
    return {
        f"{name}_fn.weight": Role(checkpoint + ".hc_fn", ("streams", "all streams"), where),
        f"{name}_base.weight": Role(checkpoint + ".hc_base", ("streams",), where),
        f"{name}_scale.weight": Role(checkpoint + ".hc_scale", ("1",), where),
    }


LAYER = {
    "nextn.embed_tokens.weight": Role("embed_tokens.weight", ("vocab", "hidden"), "predicting"),
    "nextn.enorm.weight": Role("enorm.weight", ("hidden",), "predicting"),
    "nextn.hnorm.weight": Role("hnorm.weight", ("hidden",), "predicting"),
    "nextn.eh_proj.weight": Role("eh_proj.weight", ("hidden", "2 hidden"), "predicting"),
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
    "nextn.shared_head_norm.weight": Role("shared_head.norm.weight", ("hidden",), "predicting"),
    "nextn.shared_head_head.weight": Role("shared_head.head.weight", ("vocab", "hidden"), "predicting"),
}
# What makes one of the streams: of the model, and of prediction. A file of prediction alone has its own under the
# model's names, and then the model's, which another file has, needs names of ours; elsewhere prediction's does.
END, PREDICTED_END, LENT_END = "output_hc", "predicted_hc", "model_hc"
_OWN, _PREDICTED = "model.hc_head", "model.layers.{layer}.hc_head"
LAST = {**_joining(END, _OWN), **_joining(PREDICTED_END, _PREDICTED, "predicting"), **LAST_ROLES}
ALONE = {**_joining(END, _PREDICTED), **_joining(LENT_END, _OWN, "lent"), **LAST_ROLES}


def conditions(model: V4Model, layer: int | None) -> set[str]:
    """Return which of the roles' `where` hold for a layer, or for the tensors of the model."""
    if layer is None:
        held = {"always"} if model.tied else {"always", "untied"}
        return held | ({"predicting"} if model.predictors else set())
    ratio = model.ratios[layer]
    held = {"always", "by id" if layer < model.by_id else "by score"}
    held |= {"predicting"} if layer >= model.layers else {"sees"} if model.sees else set()
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
    low = compressed.low_rank(own, at, x, shape)
    chosen = [None] * len(x) if model.attends_to_all(layer) else _chosen(own, at, x, low, shape)
    return torch.stack([compressed.attention(own, at, *one, shape) for one in zip(x, low, chosen, strict=True)])


def _chosen(pass_: Pass, at: str, x: Floats, low: Floats, shape: Shape) -> Sequence[Numbers | None]:
    """Return the entries that the tokens of each sequence may see, [T, K]; None where there are none yet."""
    indexes = [compressed.index(pass_, at, *one, shape) for one in zip(x, low, strict=True)]
    there = [index for index in indexes if index is not None]
    chosen = pass_.chooser.take(there or None, shape.top_k)
    return chosen if there else [None] * len(x)


def feed(pass_: Pass, layer: int, state: Floats, tokens: Numbers) -> Floats:
    """Return streams [..., S, hidden] after a layer's experts."""
    model, at = _model(pass_), f"blk.{layer}."
    mixing = _mixed(pass_, at + "hc_ffn", state)
    x = _normed(pass_, layer, mixing)
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


def enter(pass_: Pass, layer: int, state: Floats) -> Floats:
    """Return what the router and the experts of a layer read of streams [N, S, hidden], [N, hidden]."""
    return _normed(pass_, layer, _mixed(pass_, f"blk.{layer}.hc_ffn", state))


def add(pass_: Pass, layer: int, state: Floats, added: Floats) -> Floats:
    """Return streams [N, S, hidden] with what the experts add."""
    return _mixed(pass_, f"blk.{layer}.hc_ffn", state).left(added, state)


def finish(pass_: Pass, state: Floats) -> Floats:
    """Return the normed output of the last layer, [B, T, hidden]."""
    return _joined(pass_, LENT_END if pass_.model.alone else END, "output_norm.weight", state)


def begin(_pass: Pass, state: Floats) -> Floats:
    """Return what prediction reads of the model: its streams."""
    return state


def predict(pass_: Pass, layer: int, states: Floats, tokens: Numbers) -> Floats:
    """Return the streams [B, T-1, S, hidden] before a prediction layer's block, for streams of tokens [B, T].

    Every stream has a norm of its own, and the next token's embedding beside it: eh_proj·[enorm(e), hnorm(stream)].
    """
    model, at = _model(pass_), f"blk.{layer}.nextn."
    embedded = lookup(pass_, at + "embed_tokens.weight", tokens[:, 1:])
    e, h = (
        rms_norm(x, pass_.vector(f"{at}{name}.weight"), model.eps)
        for x, name in ((embedded, "enorm"), (states[:, :-1], "hnorm"))
    )
    return pass_.linear(torch.cat([e[:, :, None].expand_as(h), h], dim=-1), at + "eh_proj.weight")


def leave(_pass: Pass, _layer: int, state: Floats) -> Floats:
    """Return what the next prediction layer reads: the streams."""
    return state


def read(pass_: Pass, layer: int, state: Floats) -> Floats:
    """Return what a prediction layer's head reads, normed, [B, T, hidden]."""
    name = END if pass_.model.alone else PREDICTED_END
    return _joined(pass_, name, f"blk.{layer}.nextn.shared_head_norm.weight", state)


def _joined(pass_: Pass, name: str, norm: str, state: Floats) -> Floats:
    model = _model(pass_)
    return rms_norm(streams.joined(pass_, name, state, model.eps, model.floor), pass_.vector(norm), model.eps)


def _mixed(pass_: Pass, name: str, state: Floats) -> streams.Mixing:
    model = _model(pass_)
    return streams.mixing(pass_, name, state, model.eps, model.floor, model.rounds)


def _normed(pass_: Pass, layer: int, mixing: streams.Mixing) -> Floats:
    return rms_norm(mixing.entered, pass_.vector(f"blk.{layer}.ffn_norm.weight"), pass_.model.eps)


def _model(pass_: Pass) -> V4Model:
    assert isinstance(pass_.model, V4Model)  # noqa: S101 - only such models name this architecture
    return pass_.model


ARCHITECTURE = Architecture(
    name=V4Model.architecture,
    classes=("DeepseekV4ForCausalLM",),
    gguf_names=("deepseek4",),
    of_config=of_config,
    of_gguf=of_gguf,
    roles=Roles(FIRST_ROLES, LAYER, LAST, "model.layers.{layer}.", conditions, ALONE),
    attends=(
        "attn_q_a", "attn_q_b", "attn_kv", "attn_compressor_kv", "attn_compressor_gate", "attn_output_a",
        "attn_output_b", "indexer.attn_q_b", "indexer.proj", "indexer_compressor_kv", "indexer_compressor_gate",
    ),
    embed=embed,
    attend=attend,
    feed=feed,
    finish=finish,
    attention=attention,
    experts=Experts(enter, route, add),
    predicting=Predicting(begin, predict, leave, read),
)  # fmt: skip
