"""Mistakes that converters, quantizers and engines make, as data: what each damages and how it has to be found.

A file fault changes an `Image`, a right GGUF file taken apart. A reader fault leaves the file right and computes
with it wrongly, as an engine might.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gguf_mla import codec, ggtypes, open_checkpoint, open_gguf
from gguf_mla.container.values import Kind, Value, array, boolean, f32, string, u32
from gguf_mla.container.writer import TensorSpec, lay_out
from gguf_mla.forward import attention, layers, rope
from tests.support import hub

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gguf_mla.forward.attention import Inputs
    from gguf_mla.forward.model import Model
    from verify.job import Proof

NOPE, ROPE, RANK, HEADS, VALUE = 128, 64, 512, 4, 128
ARCH = "deepseek2."
TOKENS = "tokenizer.ggml."


@dataclass
class Image:
    """A GGUF file taken apart: metadata, and for every tensor its shape, type and bytes."""

    metadata: dict[str, Value]
    tensors: dict[str, tuple[tuple[int, ...], str, bytes]]
    cut: int = 0

    @classmethod
    def of(cls, path: Path) -> Image:
        file = open_gguf(path)
        return cls(dict(file.values), {t.name: (t.shape, t.type, t.read().tobytes()) for t in file.tensors.values()})

    def write(self, path: Path) -> Path:
        specs = [TensorSpec(name, shape, kind) for name, (shape, kind, _) in self.tensors.items()]
        layout = lay_out(self.metadata, specs)
        with path.open("wb") as file:
            file.write(layout.head)
            for offset, (_, _, data) in zip(layout.offsets, self.tensors.values(), strict=True):
                file.seek(offset)
                file.write(data)
            file.truncate(layout.size - self.cut)
        return path

    def values(self, name: str) -> np.ndarray:
        shape, kind, data = self.tensors[name]
        return codec.decode(rows(data, shape, kind), kind).reshape(shape)

    def put(self, name: str, values: np.ndarray, kind: str | None = None) -> None:
        """Store values in the tensor's type."""
        kind = kind or self.tensors[name][1]
        flat = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1])
        importance = np.ones(flat.shape[1], np.float32) if ggtypes.by_name(kind).needs_importance else None
        data = codec.encode(flat, kind, importance=importance, check=False)
        self.tensors[name] = (values.shape, kind, data.tobytes())

    def change(self, name: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
        self.put(name, how(self.values(name)))


def rows(data: bytes, shape: tuple[int, ...], kind: str) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(-1, ggtypes.by_name(kind).row_bytes(shape[-1]))


@dataclass(frozen=True)
class Fault:
    """A mistake in a file: the level that finds it and what is named; `hidden_by` are file types too coarse
    to show it."""

    name: str
    level: str
    blame: str
    damage: Callable[[Image], None]
    hidden_by: tuple[str, ...] = ()


def blamed(proof: Proof, level: str, blame: str) -> None:
    """The proof says wrong, and its first finding is of this level and names this part."""
    assert not proof.right
    first = proof.findings[0]
    assert first.level == level, first.sentence
    assert blame in first.subject, first.sentence


def key(name: str, value: Value | None) -> Callable[[Image], None]:
    """Set a metadata key, or remove it."""

    def damage(image: Image) -> None:
        if value is None:
            del image.metadata[name]
        else:
            image.metadata[name] = value

    return damage


def changed(name: str, how: Callable[[np.ndarray], np.ndarray]) -> Callable[[Image], None]:
    return lambda image: image.change(name, how)


def missing(name: str) -> Callable[[Image], None]:
    return lambda image: image.tensors.pop(name) and None


def swapped(first: str, second: str) -> Callable[[Image], None]:
    def damage(image: Image) -> None:
        image.tensors[first], image.tensors[second] = image.tensors[second], image.tensors[first]

    return damage


def copied(source: str, target: str) -> Callable[[Image], None]:
    return lambda image: image.put(target, image.values(source))


def halves_swapped(image: Image) -> None:
    """kv_b_proj read as value rows first: with n = v the shapes still fit."""
    k, v = image.values("blk.1.attn_k_b.weight"), image.values("blk.1.attn_v_b.weight")
    image.put("blk.1.attn_k_b.weight", v.transpose(0, 2, 1))
    image.put("blk.1.attn_v_b.weight", k.transpose(0, 2, 1))


def half_split(x: np.ndarray, axis: int) -> np.ndarray:
    """Interleaved pairs moved into two halves, as for NEOX rotation."""
    order = np.r_[0:ROPE:2, 1:ROPE:2]
    return np.take(x, order, axis=axis)


def rope_rows(x: np.ndarray, per_head: int) -> np.ndarray:
    heads = x.reshape(-1, per_head, x.shape[-1]).copy()
    heads[:, per_head - ROPE :] = half_split(heads[:, per_head - ROPE :], 1)
    return heads.reshape(x.shape)


def rope_first(x: np.ndarray) -> np.ndarray:
    return np.roll(x.reshape(HEADS, NOPE + ROPE, -1), ROPE, axis=1).reshape(x.shape)


def fp8_scales(layer: int, name: str) -> np.ndarray:
    """The block scales of a bundled tensor, spread over its values."""
    tensor: Any = open_checkpoint(hub.BUNDLED).tensors[f"model.layers.{layer}.{name}.weight"]
    scales = tensor.scale.read().view(np.float32).reshape(tensor.scale.shape)
    return np.repeat(np.repeat(scales, 128, 0), 128, 1)[: tensor.shape[0], : tensor.shape[1]]


def divided(x: np.ndarray) -> np.ndarray:
    return x / fp8_scales(1, "self_attn.q_a_proj") ** 2


def edge_scaled(x: np.ndarray) -> np.ndarray:
    """The 64 rows behind the last whole block get the scales of the block before."""
    scales = fp8_scales(1, "self_attn.kv_a_proj_with_mqa")
    wrong = scales.copy()
    wrong[RANK:] = scales[RANK - 64 : RANK]
    return x / scales * wrong


def byte_flipped(offset: int) -> Callable[[Image], None]:
    """Flip the bits of one byte of the second block of a tensor."""

    def damage(image: Image) -> None:
        name = "blk.1.attn_q_b.weight"
        shape, kind, data = image.tensors[name]
        broken = bytearray(data)
        broken[ggtypes.by_name(kind).bytes + offset] ^= 0x7F
        image.tensors[name] = (shape, kind, bytes(broken))

    return damage


def not_a_number(image: Image) -> None:
    name = "blk.2.ffn_norm.weight"
    values = image.values(name)
    values[17] = np.nan
    image.put(name, values)


def in_bf16(image: Image) -> None:
    image.put("blk.0.attn_norm.weight", image.values("blk.0.attn_norm.weight"), "BF16")


def vocabulary_shifted(image: Image) -> None:
    tokens = list(image.metadata[TOKENS + "tokens"].data)
    image.metadata[TOKENS + "tokens"] = array(Kind.STRING, [*tokens[1:], tokens[0]])


def merge_lost(image: Image) -> None:
    merges = list(image.metadata[TOKENS + "merges"].data)
    image.metadata[TOKENS + "merges"] = array(Kind.STRING, merges[:-1])


def cut_off(image: Image) -> None:
    image.cut = 4096


def one_expert(x: np.ndarray) -> np.ndarray:
    broken = x.copy()
    broken[[2, 5]] = broken[[5, 2]]
    return broken


FAULTS = (
    # the halves of kv_b_proj, heads and rows
    Fault("k_b not transposed", "structure", "blk.1.attn_k_b.weight",
          changed("blk.1.attn_k_b.weight", lambda x: x.transpose(0, 2, 1))),
    Fault("k_b not transposed under its right shape", "weights", "blk.1.attn_k_b.weight",
          changed("blk.1.attn_k_b.weight", lambda x: x.transpose(0, 2, 1).reshape(x.shape))),
    Fault("k and v swapped", "weights", "blk.1.attn_k_b.weight", halves_swapped),
    Fault("heads of k_b permuted", "weights", "blk.2.attn_k_b.weight",
          changed("blk.2.attn_k_b.weight", lambda x: np.roll(x, 1, axis=0))),
    Fault("one head of v_b upside down", "weights", "blk.2.attn_v_b.weight",
          changed("blk.2.attn_v_b.weight", lambda x: np.concatenate([x[:3], x[3:, ::-1]]))),
    Fault("heads of the output permuted", "weights", "blk.0.attn_output.weight",
          changed("blk.0.attn_output.weight", lambda x: np.roll(x, VALUE, axis=1))),
    Fault("rope rows of q permuted", "weights", "blk.1.attn_q_b.weight",
          changed("blk.1.attn_q_b.weight", lambda x: rope_rows(x, NOPE + ROPE))),
    Fault("rope rows of k permuted", "weights", "blk.1.attn_kv_a_mqa.weight",
          changed("blk.1.attn_kv_a_mqa.weight", lambda x: rope_rows(x, RANK + ROPE))),
    Fault("rows of kv_a in the order [pe, kv]", "weights", "blk.1.attn_kv_a_mqa.weight",
          changed("blk.1.attn_kv_a_mqa.weight", lambda x: np.concatenate([x[RANK:], x[:RANK]]))),
    Fault("rope of q before nope", "weights", "blk.0.attn_q_b.weight",
          changed("blk.0.attn_q_b.weight", rope_first)),
    # rotation and scale
    Fault("YaRN factor", "structure", "rope.scaling.factor", key(ARCH + "rope.scaling.factor", f32(40))),
    Fault("YaRN log multiplier not divided by ten", "structure", "rope.scaling.yarn_log_multiplier",
          key(ARCH + "rope.scaling.yarn_log_multiplier", f32(1.0))),
    Fault("YaRN's context", "structure", "rope.scaling.original_context_length",
          key(ARCH + "rope.scaling.original_context_length", u32(2048))),
    Fault("no YaRN", "structure", "rope.scaling.type", key(ARCH + "rope.scaling.type", None)),
    Fault("another base", "structure", "rope.freq_base", key(ARCH + "rope.freq_base", f32(500000.0))),
    Fault("scale of the cached row", "structure", "attention.key_length_mla",
          key(ARCH + "attention.key_length_mla", u32(RANK + ROPE))),
    Fault("cache of all heads", "structure", "attention.head_count_kv",
          key(ARCH + "attention.head_count_kv", u32(HEADS))),
    Fault("values of the latent row's length", "structure", "attention.value_length_mla",
          key(ARCH + "attention.value_length_mla", u32(RANK))),
    # norms
    Fault("epsilon", "structure", "layer_norm_rms_epsilon", key(ARCH + "attention.layer_norm_rms_epsilon", f32(1e-5))),
    Fault("norm in BF16", "structure", "blk.0.attn_norm.weight", in_bf16),
    Fault("norm less one", "weights", "blk.0.attn_norm.weight", changed("blk.0.attn_norm.weight", lambda x: x - 1)),
    Fault("norms swapped", "weights", "blk.1.attn_norm.weight",
          swapped("blk.1.attn_norm.weight", "blk.1.ffn_norm.weight")),
    Fault("norm with a NaN", "weights", "blk.2.ffn_norm.weight", not_a_number),
    # experts
    Fault("experts off by one", "weights", "blk.1.ffn_up_exps.weight",
          changed("blk.1.ffn_up_exps.weight", lambda x: np.roll(x, 1, axis=0))),
    Fault("two experts swapped", "weights", "blk.2.ffn_down_exps.weight",
          changed("blk.2.ffn_down_exps.weight", one_expert)),
    Fault("gate and up of the experts swapped", "weights", "blk.1.ffn_gate_exps.weight",
          swapped("blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight")),
    Fault("gate and up of the dense layer swapped", "weights", "blk.0.ffn_gate.weight",
          swapped("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight")),
    Fault("shared expert dropped", "structure", "blk.1.ffn_gate_shexp.weight", missing("blk.1.ffn_gate_shexp.weight")),
    Fault("shared expert zero", "weights", "blk.2.ffn_down_shexp.weight",
          changed("blk.2.ffn_down_shexp.weight", lambda x: x * 0)),
    Fault("router scores permuted", "weights", "blk.1.ffn_gate_inp.weight",
          changed("blk.1.ffn_gate_inp.weight", lambda x: np.roll(x, 1, axis=0))),
    Fault("no correction bias", "structure", "blk.2.exp_probs_b.bias", missing("blk.2.exp_probs_b.bias")),
    Fault("correction bias of another layer", "weights", "blk.1.exp_probs_b.bias",
          swapped("blk.1.exp_probs_b.bias", "blk.2.exp_probs_b.bias")),
    Fault("routing by softmax", "structure", "expert_gating_func", key(ARCH + "expert_gating_func", u32(1))),
    Fault("no gating function", "structure", "expert_gating_func", key(ARCH + "expert_gating_func", None)),
    Fault("weights not normalised", "structure", "expert_weights_norm", key(ARCH + "expert_weights_norm", None)),
    Fault("weights not scaled", "structure", "expert_weights_scale", key(ARCH + "expert_weights_scale", f32(1.0))),
    Fault("no groups", "structure", "expert_group_count", key(ARCH + "expert_group_count", u32(1))),
    Fault("one expert too many", "structure", "expert_used_count", key(ARCH + "expert_used_count", u32(3))),
    Fault("dense layers miscounted", "structure", "leading_dense_block_count",
          key(ARCH + "leading_dense_block_count", u32(2))),
    # values
    Fault("scale_inv divided", "weights", "blk.1.attn_q_a.weight", changed("blk.1.attn_q_a.weight", divided)),
    Fault("scale of the edge block", "weights", "blk.1.attn_kv_a_mqa.weight",
          changed("blk.1.attn_kv_a_mqa.weight", edge_scaled), hidden_by=("Q4_K_M", "IQ1_S")),
    Fault("one flipped byte of a scale", "weights", "blk.1.attn_q_b.weight", byte_flipped(1), hidden_by=("IQ1_S",)),
    Fault("one flipped byte of values", "weights", "blk.1.attn_q_b.weight",
          byte_flipped(20), hidden_by=("Q4_K_M", "IQ1_S")),
    Fault("layers swapped", "weights", "blk.1.attn_q_a.weight",
          swapped("blk.1.attn_q_a.weight", "blk.2.attn_q_a.weight")),
    Fault("file cut off", "structure", "output.weight", cut_off),
    Fault("a tensor too many", "structure", "blk.9.attn_norm.weight",
          lambda image: image.tensors.update({"blk.9.attn_norm.weight": image.tensors["blk.0.attn_norm.weight"]})),
    # vocabulary
    Fault("embeddings off by one", "weights", "token_embd.weight",
          changed("token_embd.weight", lambda x: np.roll(x, 1, axis=0))),
    Fault("output tied by mistake", "weights", "output.weight", copied("token_embd.weight", "output.weight")),
    Fault("output left out", "structure", "output.weight", missing("output.weight")),
    Fault("vocabulary off by one", "structure", "tokenizer.ggml.tokens", vocabulary_shifted),
    Fault("a merge lost", "structure", "tokenizer.ggml.merges", merge_lost),
    Fault("wrong bos", "structure", "bos_token_id", key(TOKENS + "bos_token_id", u32(1))),
    Fault("wrong eos", "structure", "eos_token_id", key(TOKENS + "eos_token_id", u32(2))),
    Fault("bos not added", "structure", "add_bos_token", key(TOKENS + "add_bos_token", boolean(False))),
    Fault("another architecture", "structure", "general.architecture", key("general.architecture", string("llama"))),
)  # fmt: skip


@dataclass(frozen=True)
class ReaderFault:
    """A right file, read wrongly: `model` changes what the reader takes it for, `form` its attention."""

    name: str
    level: str
    blame: str
    model: Callable[[Model], Model] = lambda model: model
    form: Callable[[Inputs], torch.Tensor] = attention.absorbed
    route: Callable[..., Any] = layers.route
    hidden_by: tuple[str, ...] = ()


def with_routing(**changes: Any) -> Callable[[Model], Model]:
    return lambda model: dataclasses.replace(model, routing=dataclasses.replace(model.routing, **changes))


def scaled(factor: float) -> Callable[[Inputs], torch.Tensor]:
    return lambda x: attention.absorbed(dataclasses.replace(x, scale=x.scale * factor))


def rows_mistaken(x: Inputs) -> torch.Tensor:
    """Rows [pe | kv] read as if they were [kv | pe]."""
    written, read = (attention.RowLayout(RANK, ROPE, pe_first) for pe_first in (True, False))
    queries = read.join(attention.absorb(x), x.q_pe)
    return attention.expand(x, attention.attend(queries, written.join(x.latent, x.k_pe), read, x.scale))


def values_shifted(x: Inputs) -> torch.Tensor:
    """V taken at the offset of the other row layout."""
    layout = attention.RowLayout(RANK, ROPE)
    rows_, queries = layout.join(x.latent, x.k_pe), layout.join(attention.absorb(x), x.q_pe)
    out = torch.empty(*x.q_nope.shape[:2], RANK)
    for head in range(HEADS):
        out[:, head] = attention.causal_softmax(queries[:, head] @ rows_.T, x.scale) @ rows_[:, ROPE:]
    return attention.expand(x, out)


def latent_rotated(x: Inputs) -> torch.Tensor:
    """A context shift that turns the first 64 values of a row whose rotated part is behind."""
    layout, wrong = attention.RowLayout(RANK, ROPE), attention.RowLayout(RANK, ROPE, pe_first=True)
    cached = attention.shift(layout.join(x.latent, x.k_pe), wrong, 40, bundled())
    broken = dataclasses.replace(x, latent=cached[:, layout.latent], k_pe=cached[:, layout.pe])
    return attention.absorbed(broken)


def unrotated_keys(x: Inputs) -> torch.Tensor:
    return attention.absorbed(dataclasses.replace(x, k_pe=rope.rotate(x.k_pe, -torch.arange(len(x.k_pe)), bundled())))


def every_token_seen(x: Inputs) -> torch.Tensor:
    """No causal mask."""
    layout = attention.RowLayout(RANK, ROPE)
    queries = layout.join(attention.absorb(x), x.q_pe)
    cached = layout.join(x.latent, x.k_pe)
    weights = (torch.einsum("thr,sr->hts", queries, cached) * x.scale).softmax(dim=-1)
    return attention.expand(x, torch.einsum("hts,sr->thr", weights, x.latent))


@functools.cache
def bundled() -> Model:
    from tests.support.weights import checkpoint_weights

    return checkpoint_weights(hub.BUNDLED).model


def biased_weights(logits: torch.Tensor, bias: torch.Tensor, routing: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The correction bias kept in the experts' weights."""
    chosen, _ = layers.route(logits, bias, routing)
    shares = (logits.sigmoid() + bias).gather(1, chosen)
    return chosen, shares / shares.sum(dim=1, keepdim=True) * routing.scale


READER_FAULTS = (
    ReaderFault("softmax scale from 576", "attention", "blk.0", form=scaled(((NOPE + ROPE) / (RANK + ROPE)) ** 0.5)),
    ReaderFault("softmax scale without YaRN", "attention", "blk.0", form=scaled(1 / 1.2965)),
    ReaderFault("rows [pe, kv] read as [kv, pe]", "attention", "blk.0", form=rows_mistaken),
    ReaderFault("V at the other layout's offset", "attention", "blk.0", form=values_shifted),
    ReaderFault("context shift of the wrong part", "attention", "blk.0", form=latent_rotated),
    ReaderFault("keys not rotated", "attention", "blk.0", form=unrotated_keys),
    ReaderFault("no causal mask", "attention", "blk.0", form=every_token_seen),
    ReaderFault("YaRN left out", "attention", "blk.0", lambda model: dataclasses.replace(model, yarn=None)),
    ReaderFault("norms of the latent with a large epsilon", "attention", "blk.0",
                lambda model: dataclasses.replace(model, latent_eps=0.1)),
    ReaderFault("groups by their best expert", "logits", "blk.1",
                with_routing(group_score="best"), hidden_by=("Q8_0",)),
    ReaderFault("no groups", "logits", "blk.1", with_routing(groups=1, groups_used=1), hidden_by=("Q8_0",)),
    ReaderFault("bias ignored", "logits", "blk.1", with_routing(corrected=False), hidden_by=("Q8_0",)),
    ReaderFault("bias in the weights", "logits", "blk.1", route=biased_weights, hidden_by=("Q8_0",)),
    ReaderFault("weights not normalised", "logits", "blk.1", with_routing(normalised=False)),
)  # fmt: skip
