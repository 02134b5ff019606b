"""DeepSeek-V4: streams of residuals, compressed attention, experts by token id in the first layers, clamped SwiGLU.

Source: the DeepSeek-V4 report and its published modelling code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gguf_mla.forward import compressed, layers, streams
from gguf_mla.forward.architecture import Architecture, Experts
from gguf_mla.forward.compressed import CSA
from gguf_mla.forward.deepseek4_model import V4Model, of_config, of_gguf
from gguf_mla.forward.layers import lookup, mixed, mlp, rms_norm
from gguf_mla.forward.mla import FIRST_ROLES, LAST_ROLES
from gguf_mla.forward.tensors import Role, Roles

if TYPE_CHECKING:
    from gguf_mla.forward.arrays import Floats, Numbers
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


def leave(pass_: Pass, layer: int, state: Floats, added: Floats) -> Floats:
    """Return streams [N, S, hidden] with what the experts add."""
    return _mixed(pass_, f"blk.{layer}.hc_ffn", state).left(added, state)


def finish(pass_: Pass, state: Floats) -> Floats:
    """Return the normed output of the last layer, [B, T, hidden]."""
    model = _model(pass_)
    joined = streams.joined(pass_, "output_hc", state, model.eps, model.floor)
    return rms_norm(joined, pass_.vector("output_norm.weight"), model.eps)


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
    experts=Experts(enter, route, leave),
)  # fmt: skip
