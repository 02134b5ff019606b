"""Mistakes with sparse attention and multi-token prediction, as in `faults`: in files, and in readers of right ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gguf_mla.container.values import Kind, array, string, u32
from gguf_mla.forward import attention, indexer, layers, prediction, rope
from tests.verify.faults import Fault, changed, copied, key, missing, swapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf_mla.forward.attention import Inputs
    from gguf_mla.forward.indexer import Index
    from gguf_mla.forward.model import Model
    from tests.verify.faults import Image

ROPE, SIZE, HEADS, TOP_K = 64, 128, 32, 16
HIDDEN = 256
V32, GLM = "deepseek32.", "glm-dsa."
SHIFT = 40


def interleaved_rows(x: np.ndarray) -> np.ndarray:
    """The leading rope rows of every indexer head in the order that rotates neighbouring pairs."""
    heads = x.reshape(-1, SIZE, x.shape[-1]).copy()
    heads[:, :ROPE] = heads[:, :ROPE].reshape(len(heads), 2, ROPE // 2, -1).swapaxes(1, 2).reshape(len(heads), ROPE, -1)
    return heads.reshape(x.shape)


def rope_last(x: np.ndarray) -> np.ndarray:
    return np.roll(x.reshape(-1, SIZE, x.shape[-1]), -ROPE, axis=1).reshape(x.shape)


def norm_in_f16(image: Image) -> None:
    image.put("blk.0.indexer.k_norm.weight", image.values("blk.0.indexer.k_norm.weight"), "F16")


FAULTS = (
    # the indexer; the prediction layer, blk.2, has one, too
    Fault("top-k off by one", "structure", "indexer.top_k", key(V32 + "attention.indexer.top_k", u32(TOP_K + 1))),
    Fault("half the indexer's heads", "structure", "indexer.head_count",
          key(V32 + "attention.indexer.head_count", u32(HEADS // 2))),
    Fault("indexer rows of another length", "structure", "indexer.key_length",
          key(V32 + "attention.indexer.key_length", u32(SIZE // 2))),
    Fault("indexer rows shorter than what is rotated", "structure", "indexer.key_length",
          key(V32 + "attention.indexer.key_length", u32(ROPE // 2))),
    Fault("prediction layers in words", "structure", "nextn_predict_layers",
          key(V32 + "nextn_predict_layers", string("one"))),
    Fault("more prediction layers than layers", "structure", "nextn_predict_layers",
          key(V32 + "nextn_predict_layers", u32(3))),
    Fault("no top-k", "structure", "indexer.top_k", key(V32 + "attention.indexer.top_k", None)),
    Fault("indexer left out of a layer", "structure", "blk.1.indexer.attn_k.weight",
          missing("blk.1.indexer.attn_k.weight")),
    Fault("no bias of the indexer's norm", "structure", "blk.1.indexer.k_norm.bias",
          missing("blk.1.indexer.k_norm.bias")),
    Fault("the indexer's norm in F16", "structure", "blk.0.indexer.k_norm.weight", norm_in_f16),
    Fault("bias of the indexer's norm zero", "weights", "blk.1.indexer.k_norm.bias",
          changed("blk.1.indexer.k_norm.bias", lambda x: x * 0)),
    Fault("indexer queries permuted as for interleaved rotation", "weights", "blk.0.indexer.attn_q_b.weight",
          changed("blk.0.indexer.attn_q_b.weight", interleaved_rows)),
    Fault("indexer keys permuted as for interleaved rotation", "weights", "blk.2.indexer.attn_k.weight",
          changed("blk.2.indexer.attn_k.weight", interleaved_rows)),
    Fault("indexer rope behind nope", "weights", "blk.1.indexer.attn_q_b.weight",
          changed("blk.1.indexer.attn_q_b.weight", rope_last)),
    Fault("indexer of another layer", "weights", "blk.0.indexer.attn_k.weight",
          swapped("blk.0.indexer.attn_k.weight", "blk.1.indexer.attn_k.weight")),
    Fault("head weights scaled in advance", "weights", "blk.0.indexer.proj.weight",
          changed("blk.0.indexer.proj.weight", lambda x: x * np.float32(HEADS**-0.5))),
    Fault("head weights permuted", "weights", "blk.1.indexer.proj.weight",
          changed("blk.1.indexer.proj.weight", lambda x: np.roll(x, 1, axis=0))),
    # multi-token prediction
    Fault("prediction layer counted as an ordinary one", "structure", "block_count",
          key(V32 + "nextn_predict_layers", None)),
    Fault("prediction layers miscounted", "structure", "nextn_predict_layers",
          key(V32 + "nextn_predict_layers", u32(2))),
    Fault("prediction counted and left out", "structure", "blk.2.nextn.eh_proj.weight",
          missing("blk.2.nextn.eh_proj.weight")),
    Fault("halves of eh_proj swapped", "weights", "blk.2.nextn.eh_proj.weight",
          changed("blk.2.nextn.eh_proj.weight", lambda x: np.roll(x, HIDDEN, axis=1))),
    Fault("enorm and hnorm swapped", "weights", "blk.2.nextn.enorm.weight",
          swapped("blk.2.nextn.enorm.weight", "blk.2.nextn.hnorm.weight")),
    Fault("the main output's norm before the prediction head", "weights", "blk.2.nextn.shared_head_norm.weight",
          copied("output_norm.weight", "blk.2.nextn.shared_head_norm.weight")),
    Fault("prediction embeddings off by one", "weights", "blk.2.nextn.embed_tokens.weight",
          changed("blk.2.nextn.embed_tokens.weight", lambda x: np.roll(x, 1, axis=0))),
    Fault("embeddings as the prediction head", "weights", "blk.2.nextn.shared_head_head.weight",
          copied("token_embd.weight", "blk.2.nextn.shared_head_head.weight")),
)  # fmt: skip

# of a GLM-5 whose second layer uses the choice of the first
SHARED_FAULTS = (
    Fault("every layer said to have an indexer", "structure", "indexer.types",
          key(GLM + "attention.indexer.types", array(Kind.BOOL, [True, True, True]))),
    Fault("the first layer said to have none", "structure", "indexer.types",
          key(GLM + "attention.indexer.types", array(Kind.BOOL, [False, False, True]))),
    Fault("types of too few layers", "structure", "indexer.types",
          key(GLM + "attention.indexer.types", array(Kind.BOOL, [True, False]))),
)  # fmt: skip


Prepare = Any  # indexer.prepare and its like


def hadamard_of_queries_only(*arguments: Any) -> Index:
    right = indexer.prepare(*arguments)
    return dataclasses.replace(right, keys=indexer.hadamard(right.keys))  # its own inverse


def keys_by_rms(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, norm: Any, model: Model) -> Index:
    """RMSNorm in place of LayerNorm: the mean stays."""
    keys = layers.rms_norm(k, norm[0], indexer.EPS) + norm[1]
    return dataclasses.replace(
        indexer.prepare(q, k, weights, norm, model), keys=indexer._turned(keys, torch.arange(len(keys)), model)
    )


def keys_without_bias(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, norm: Any, model: Model) -> Index:
    return indexer.prepare(q, k, weights, (norm[0], torch.zeros_like(norm[1])), model)


def trailing_part_rotated(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, norm: Any, model: Model) -> Index:
    # The products do not see in which order the values of q and k come, if it is the same.
    q = q.reshape(len(q), HEADS, SIZE).roll(ROPE, dims=2).reshape(q.shape)
    return indexer.prepare(q, k.roll(ROPE, dims=1), weights, [x.roll(ROPE) for x in norm], model)


def head_weights_unscaled(*arguments: Any) -> Index:
    right = indexer.prepare(*arguments)
    return dataclasses.replace(right, weights=right.weights * (HEADS * SIZE) ** 0.5)


def shifted(keys: Callable[[torch.Tensor, Model], torch.Tensor]) -> Prepare:
    """Queries and keys as after a context shift, of which only distances count."""

    def prepare(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, norm: Any, model: Model) -> Index:
        right = indexer.prepare(q, k, weights, norm, model)
        turned = indexer._rotated(indexer.hadamard(right.queries), torch.full((len(q),), SHIFT), model)
        return dataclasses.replace(right, queries=indexer.hadamard(turned), keys=keys(right.keys, model))

    return prepare


def shift(keys: torch.Tensor, model: Model) -> torch.Tensor:
    return indexer.shift(keys, SHIFT, model)


def shift_of_the_wrong_half(keys: torch.Tensor, model: Model) -> torch.Tensor:
    plain = indexer.hadamard(keys)
    behind = rope.rotate_halves(plain[:, ROPE:], torch.full((len(keys),), SHIFT), model)
    return indexer.hadamard(torch.cat([plain[:, :ROPE], behind], dim=1))


def shift_behind_the_transform(keys: torch.Tensor, model: Model) -> torch.Tensor:
    return indexer._rotated(keys, torch.full((len(keys),), SHIFT), model)


def hidden_first(pass_: Any, layer: int, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """eh_proj of [hidden | embedding]: the halves of its input swapped."""
    model, at = pass_.model, f"blk.{layer}.nextn."
    embedded = layers.lookup(pass_, at + "embed_tokens.weight", tokens[:, 1:])
    h = layers.rms_norm(states[:, :-1], pass_.vector(at + "hnorm.weight"), model.eps)
    e = layers.rms_norm(embedded, pass_.vector(at + "enorm.weight"), model.eps)
    return pass_.linear(torch.cat([h, e], dim=-1), at + "eh_proj.weight")


def same_token(pass_: Any, layer: int, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The embedding of the token itself instead of the next."""
    return prediction.enter(pass_, layer, states, torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1))


@dataclass(frozen=True)
class SparseFault:
    """A right file, read wrongly: `prepare` makes the index, `form` attends, `enter` begins a prediction layer.

    `chosen` is whether the choices are the same all the same; `hidden_by` are file types too coarse to show it.
    """

    name: str
    level: str
    blame: str
    model: Callable[[Model], Model] = lambda model: model
    prepare: Prepare = indexer.prepare
    form: Callable[[Inputs], torch.Tensor] = attention.absorbed
    enter: Any = prediction.enter
    chosen: bool = False
    hidden_by: tuple[str, ...] = ()


def with_indexer(**changes: Any) -> Callable[[Model], Model]:
    return lambda model: dataclasses.replace(model, indexer=dataclasses.replace(model.indexer, **changes))


READER_FAULTS = (
    SparseFault("interleaved rotation", "attention", "blk.0.indexer", with_indexer(interleaved=True)),
    SparseFault("one token too many", "attention", "blk.0.indexer", with_indexer(top_k=TOP_K + 1)),
    SparseFault("one token too few", "attention", "blk.0.indexer", with_indexer(top_k=TOP_K - 1)),
    SparseFault("queries and keys in FP8", "attention", "blk.0.indexer", with_indexer(fp8=True), hidden_by=("Q4_K_M",)),
    SparseFault("Hadamard of the queries only", "attention", "blk.0.indexer", prepare=hadamard_of_queries_only),
    SparseFault("RMSNorm of the keys", "attention", "blk.0.indexer", prepare=keys_by_rms, hidden_by=("Q4_K_M",)),
    SparseFault("no bias of the keys' norm", "attention", "blk.0.indexer",
                prepare=keys_without_bias, hidden_by=("Q4_K_M",)),
    SparseFault("trailing part rotated", "attention", "blk.0.indexer", prepare=trailing_part_rotated),
    SparseFault("head weights unscaled", "attention", "blk.0.indexer", prepare=head_weights_unscaled, chosen=True),
    SparseFault("context shift of the wrong half", "attention", "blk.0.indexer",
                prepare=shifted(shift_of_the_wrong_half)),
    SparseFault("context shift behind the transform", "attention", "blk.0.indexer",
                prepare=shifted(shift_behind_the_transform)),
    SparseFault("all tokens attended to", "attention", "blk.0",
                form=lambda x: attention.absorbed(dataclasses.replace(x, chosen=None))),
    SparseFault("state before the embedding", "logits", "blk.2", enter=hidden_first),
    SparseFault("embedding of the same token", "logits", "blk.2", enter=same_token),
)  # fmt: skip
