"""Multi-head latent attention with or without an indexer.

That of DeepSeek V2, V3 and V3.2, GLM-4 Lite, GLM-5, Kimi, Youtu and Mistral 4. Computed in float32, one layer and one
expert at a time: memory is the hidden states of the tokens and a piece of a matrix, whatever the model. Source: the
DeepSeek-V2 and -V3 papers and DeepSeek's published modelling code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gguf_mla.forward import indexer, rope
from gguf_mla.forward.architecture import Architecture, Experts, Predicting
from gguf_mla.forward.attention import Inputs
from gguf_mla.forward.layers import feed_forward, lookup, rms_norm, routed
from gguf_mla.forward.model import MlaModel
from gguf_mla.forward.of_config import model_of_config
from gguf_mla.forward.of_gguf import model_of_gguf
from gguf_mla.forward.tensors import Role, Roles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gguf_mla.forward.arrays import Floats, Numbers
    from gguf_mla.forward.layers import Pass
    from gguf_mla.forward.model import Model, Temperature

_ATTENTION, _EXPERT, _SHARED = "self_attn.", "mlp.experts.{expert}.", "mlp.shared_experts."
_INDEXER = _ATTENTION + "indexer."

LAYER_ROLES = {
    "nextn.embed_tokens.weight": Role("embed_tokens.weight", ("vocab", "hidden"), "predicting"),
    "nextn.enorm.weight": Role("enorm.weight", ("hidden",), "predicting"),
    "nextn.hnorm.weight": Role("hnorm.weight", ("hidden",), "predicting"),
    "nextn.eh_proj.weight": Role("eh_proj.weight", ("hidden", "2 hidden"), "predicting"),
    "attn_norm.weight": Role("input_layernorm.weight", ("hidden",)),
    "attn_q.weight": Role(_ATTENTION + "q_proj.weight", ("q_rows", "hidden"), "full q"),
    "attn_q_a.weight": Role(_ATTENTION + "q_a_proj.weight", ("q_rank", "hidden"), "low-rank q"),
    "attn_q_a_norm.weight": Role(_ATTENTION + "q_a_layernorm.weight", ("q_rank",), "low-rank q"),
    "attn_q_b.weight": Role(_ATTENTION + "q_b_proj.weight", ("q_rows", "q_rank"), "low-rank q"),
    "indexer.attn_q_b.weight": Role(_INDEXER + "wq_b.weight", ("index_rows", "q_rank"), "sparse"),
    "indexer.attn_k.weight": Role(_INDEXER + "wk.weight", ("index_size", "hidden"), "sparse"),
    "indexer.k_norm.weight": Role(_INDEXER + "k_norm.weight", ("index_size",), "sparse"),
    "indexer.k_norm.bias": Role(_INDEXER + "k_norm.bias", ("index_size",), "sparse"),
    "indexer.proj.weight": Role(_INDEXER + "weights_proj.weight", ("index_heads", "hidden"), "sparse"),
    "attn_kv_a_mqa.weight": Role(_ATTENTION + "kv_a_proj_with_mqa.weight", ("kv_rank+rope", "hidden")),
    "attn_kv_a_norm.weight": Role(_ATTENTION + "kv_a_layernorm.weight", ("kv_rank",)),
    "attn_k_b.weight": Role(_ATTENTION + "kv_b_proj.weight", ("heads", "kv_rank", "nope")),
    "attn_v_b.weight": Role(_ATTENTION + "kv_b_proj.weight", ("heads", "value", "kv_rank")),
    "attn_output.weight": Role(_ATTENTION + "o_proj.weight", ("hidden", "o_cols")),
    "ffn_norm.weight": Role("post_attention_layernorm.weight", ("hidden",)),
    "ffn_gate.weight": Role("mlp.gate_proj.weight", ("ffn", "hidden"), "dense"),
    "ffn_up.weight": Role("mlp.up_proj.weight", ("ffn", "hidden"), "dense"),
    "ffn_down.weight": Role("mlp.down_proj.weight", ("hidden", "ffn"), "dense"),
    "ffn_gate_inp.weight": Role("mlp.gate.weight", ("experts", "hidden"), "moe"),
    "exp_probs_b.bias": Role("mlp.gate.e_score_correction_bias", ("experts",), "corrected"),
    "ffn_gate_exps.weight": Role(_EXPERT + "gate_proj.weight", ("experts", "expert_ffn", "hidden"), "moe"),
    "ffn_up_exps.weight": Role(_EXPERT + "up_proj.weight", ("experts", "expert_ffn", "hidden"), "moe"),
    "ffn_down_exps.weight": Role(_EXPERT + "down_proj.weight", ("experts", "hidden", "expert_ffn"), "moe"),
    "ffn_gate_shexp.weight": Role(_SHARED + "gate_proj.weight", ("shared_ffn", "hidden"), "moe"),
    "ffn_up_shexp.weight": Role(_SHARED + "up_proj.weight", ("shared_ffn", "hidden"), "moe"),
    "ffn_down_shexp.weight": Role(_SHARED + "down_proj.weight", ("hidden", "shared_ffn"), "moe"),
    "nextn.shared_head_norm.weight": Role("shared_head.norm.weight", ("hidden",), "predicting"),
    "nextn.shared_head_head.weight": Role("shared_head.head.weight", ("vocab", "hidden"), "predicting"),
}
FIRST_ROLES = {"token_embd.weight": Role("model.embed_tokens.weight", ("vocab", "hidden"))}
LAST_ROLES = {
    "output_norm.weight": Role("model.norm.weight", ("hidden",)),
    "output.weight": Role("lm_head.weight", ("vocab", "hidden"), "untied"),
}


def conditions(model: MlaModel, layer: int | None) -> set[str]:
    """Return which of the roles' `where` hold for a layer, or for the tensors of the model."""
    if layer is None:
        return {"always"} if model.tied else {"always", "untied"}
    held = {"always", "low-rank q" if model.q_rank else "full q"}
    held |= {"sparse"} if model.is_sparse(layer) else set()
    held |= {"predicting"} if layer >= model.layers else set()
    if model.is_dense(layer):
        return held | {"dense"}
    return held | ({"moe", "corrected"} if model.routing.corrected else {"moe"})


def embed(pass_: Pass, tokens: Numbers) -> Floats:
    """Return the embeddings of tokens [B, T], float32 [B, T, hidden]."""
    return lookup(pass_, "token_embd.weight", tokens)


def attend(pass_: Pass, layer: int, hidden: Floats, tokens: Numbers) -> Floats:
    """Return hidden states [B, T, hidden] after a layer's attention."""
    return hidden + attention(pass_, layer, hidden, tokens)


def feed(pass_: Pass, layer: int, hidden: Floats, _tokens: Numbers) -> Floats:
    """Return hidden states [..., hidden] after a layer's MLP or experts."""
    return hidden + feed_forward(pass_, layer, hidden)


def enter(pass_: Pass, layer: int, hidden: Floats) -> Floats:
    """Return what the router and the experts of a layer read of hidden states [N, hidden]."""
    return rms_norm(hidden, pass_.vector(f"blk.{layer}.ffn_norm.weight"), pass_.model.eps)


def route(pass_: Pass, layer: int, x: Floats, _tokens: Numbers) -> tuple[Numbers, Floats]:
    """Return every token's experts and their weights, [N, K], for normed states [N, hidden]."""
    return routed(pass_, f"blk.{layer}.", x)


def leave(_pass: Pass, _layer: int, hidden: Floats, added: Floats) -> Floats:
    """Return hidden states with what the experts add."""
    return hidden + added


def finish(pass_: Pass, hidden: Floats) -> Floats:
    """Return the normed output of the last layer."""
    return rms_norm(hidden, pass_.vector("output_norm.weight"), pass_.model.eps)


def attention(pass_: Pass, layer: int, hidden: Floats, _tokens: Numbers) -> Floats:
    """Return what the attention of a layer adds to hidden states [B, T, hidden]."""
    model, at = _model(pass_), f"blk.{layer}."
    x = rms_norm(hidden, pass_.vector(at + "attn_norm.weight"), model.eps)
    latent, k_pe = _cached(pass_, at, x)
    low = _low_rank(pass_, at, x) if model.q_rank else x
    q_nope, q_pe = _queries(pass_, at, low)
    chosen: Sequence[Numbers | None] = [None] * len(x)
    if model.indexer is not None and not model.attends_to_all(layer):
        indexes = _indexes(pass_, at, x, low) if model.is_sparse(layer) else None
        chosen = pass_.chooser.take(indexes, model.indexer.top_k)
    k_b, v_b = (pass_.matrices(at + name) for name in ("attn_k_b.weight", "attn_v_b.weight"))
    observe, scale = _observer(pass_, at), model.softmax_scale
    heads = [
        pass_.form(Inputs(q_nope[b], q_pe[b], latent[b], k_pe[b], k_b, v_b, scale, chosen[b], observe))
        for b in range(len(x))
    ]
    return pass_.linear(torch.stack(heads).reshape(*x.shape[:2], -1), at + "attn_output.weight")


def _model(pass_: Pass) -> MlaModel:
    assert isinstance(pass_.model, MlaModel)  # noqa: S101 - only such models name this architecture
    return pass_.model


def _observer(pass_: Pass, at: str) -> Callable[[str, int, Floats], object] | None:
    """Return the observer for a form of attention, which knows tensors by their names within the layer."""
    observe = pass_.observe
    return None if observe is None else lambda name, head, rows: observe(at + name, head, rows)


def _cached(pass_: Pass, at: str, x: Floats) -> tuple[Floats, Floats]:
    """Return the normed latent [B, T, r] and the rotated key [B, T, p]."""
    model = _model(pass_)
    row = pass_.linear(x, at + "attn_kv_a_mqa.weight")
    norm = pass_.vector(at + "attn_kv_a_norm.weight")
    return rms_norm(row[..., : model.kv_rank], norm, model.latent_eps), _turned(row[..., model.kv_rank :], model)


def _low_rank(pass_: Pass, at: str, x: Floats) -> Floats:
    """Return the normed low-rank queries [B, T, q_rank], which the indexer reads, too."""
    low = pass_.linear(x, at + "attn_q_a.weight")
    return rms_norm(low, pass_.vector(at + "attn_q_a_norm.weight"), _model(pass_).latent_eps)


def _queries(pass_: Pass, at: str, low: Floats) -> tuple[Floats, Floats]:
    """Return the queries [B, T, H, n] and their rotated part [B, T, H, p]."""
    model = _model(pass_)
    q = pass_.linear(low, at + ("attn_q_b.weight" if model.q_rank else "attn_q.weight"))
    q = q.reshape(*low.shape[:2], model.heads, model.nope + model.rope)
    if model.temperature is not None:
        q = q * growth(q.shape[1], model.temperature, q.device)[:, None, None]
    return q[..., : model.nope], _turned(q[..., model.nope :], model)


def growth(count: int, temperature: Temperature, device: torch.device) -> Floats:
    """Return what the queries at positions 0 … count-1 are multiplied by, float32 [count].

    Source: transformers' modelling code of Mistral 4; the rotation that follows changes no length.
    """
    periods = torch.arange(count, device=device) // temperature.length
    return 1 + temperature.scale * torch.log1p(periods.to(torch.float32))


def _indexes(pass_: Pass, at: str, x: Floats, low: Floats) -> list[indexer.Index]:
    """Return the index of every sequence, from the layer's normed input and the low-rank queries."""
    parts = ("attn_q_b", low), ("attn_k", x), ("proj", x)
    q, k, shares = (pass_.linear(of, f"{at}indexer.{name}.weight") for name, of in parts)
    norm, bias = (pass_.vector(f"{at}indexer.k_norm.{part}") for part in ("weight", "bias"))
    return [indexer.prepare(q[b], k[b], shares[b], (norm, bias), pass_.model) for b in range(len(x))]


def _turned(x: Floats, model: Model) -> Floats:
    """Rotate x [B, T, ..., p] to the positions 0 … T-1."""
    positions = torch.arange(x.shape[1], device=x.device).repeat(x.shape[0])
    return rope.place(x.reshape(len(positions), -1, model.rope), positions, model).reshape(x.shape)


def predict(pass_: Pass, layer: int, states: Floats, tokens: Numbers) -> Floats:
    """Return the input [B, T-1, hidden] of a prediction layer's block, for normed states [B, T, hidden] of tokens.

    Source: the DeepSeek-V3 paper, section 2.2; that the state is the normed one: DeepSeek-R1's published code.
    """
    model, at = pass_.model, f"blk.{layer}.nextn."
    embedded = lookup(pass_, at + "embed_tokens.weight", tokens[:, 1:])
    parts = (embedded, "enorm"), (states[:, :-1], "hnorm")
    normed = [rms_norm(x, pass_.vector(f"{at}{name}.weight"), model.eps) for x, name in parts]
    return pass_.linear(torch.cat(normed, dim=-1), at + "eh_proj.weight")


def predicted(pass_: Pass, layer: int, hidden: Floats) -> Floats:
    """Return the normed output of a prediction layer, which its head reads, and the next prediction layer."""
    return rms_norm(hidden, pass_.vector(f"blk.{layer}.nextn.shared_head_norm.weight"), pass_.model.eps)


def _as_it_is(_pass: Pass, _layer: int, hidden: Floats) -> Floats:
    return hidden


PREDICTING = Predicting(finish, predict, predicted, _as_it_is)
ARCHITECTURE = Architecture(
    name=MlaModel.architecture,
    classes=(
        "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "Glm4MoeLiteForCausalLM",
        "GlmMoeDsaForCausalLM", "KimiVLForConditionalGeneration", "KimiK25ForConditionalGeneration",
        "YoutuForCausalLM", "MistralLarge3ForCausalLM", "Mistral3ForConditionalGeneration", "Mistral4ForCausalLM",
    ),
    gguf_names=("deepseek2", "deepseek32", "glm-dsa", "mistral4"),
    of_config=model_of_config,
    of_gguf=model_of_gguf,
    roles=Roles(FIRST_ROLES, LAYER_ROLES, LAST_ROLES, "model.layers.{layer}.", conditions),
    attends=(
        "attn_q", "attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_k_b", "attn_v_b", "attn_output", "indexer.attn_q_b",
        "indexer.attn_k", "indexer.proj",
    ),
    embed=embed,
    attend=attend,
    feed=feed,
    finish=finish,
    attention=attention,
    experts=Experts(enter, route, leave),
    predicting=PREDICTING,
)  # fmt: skip
