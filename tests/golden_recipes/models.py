"""Models as llama-quantize sees them: tensor names, shapes and metadata, no weights.

The full sizes are those of DeepSeek's published configurations, the small ones those of `tests/support/hub.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gguf_mla.container.values import Value, f32, string, u32
from gguf_mla.recipes import RecipeModel, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """A DeepSeek model's counts and widths. `mtp` layers follow the `layers`; `indexer_heads` makes it a V3.2."""

    layers: int = 4
    dense: int = 1
    hidden: int = 256
    heads: int = 4
    kv_rank: int = 512
    q_rank: int = 256
    ffn: int = 512
    expert_ffn: int = 256
    experts: int = 16
    shared: int = 1
    vocab: int = 2048
    nope: int = 128
    rope: int = 64
    value: int = 128
    corrected: bool = True
    legacy: bool = False
    tied: bool = False
    mtp: int = 0
    indexer_heads: int = 0
    heads_per_key: int = 1  # in a legacy file; an MLA file has one key for all heads
    matrices: str = "BF16"

    @property
    def architecture(self) -> str:
        return "deepseek32" if self.indexer_heads else "deepseek2"

    @property
    def model(self) -> RecipeModel:
        kv_heads = self.heads // self.heads_per_key if self.legacy else 1
        return RecipeModel(self.architecture, self.layers + self.mtp, self.heads, kv_heads, self.experts)

    def tensors(self) -> list[Tensor]:
        """All tensors of the file, layer by layer."""
        named = [("token_embd.weight", (self.vocab, self.hidden)), ("output_norm.weight", (self.hidden,))]
        named += [] if self.tied else [("output.weight", (self.vocab, self.hidden))]
        for layer in range(self.layers + self.mtp):
            parts = [*self._attention(), *self._indexer(), *self._ffn(layer), *self._prediction(layer)]
            named += [(f"blk.{layer}.{name}", shape) for name, shape in parts]
        return [Tensor(name, shape, self._stored(name, shape)) for name, shape in named]

    def _stored(self, name: str, shape: Shape) -> str:
        """As llama.cpp's converter stores it."""
        in_f32 = len(shape) == 1 or name.endswith(("ffn_gate_inp.weight", "indexer.proj.weight"))
        return "F32" if in_f32 else self.matrices

    def _attention(self) -> Iterator[tuple[str, Shape]]:
        rows = self.heads * (self.nope + self.rope)
        yield "attn_norm.weight", (self.hidden,)
        if self.q_rank:
            yield "attn_q_a.weight", (self.q_rank, self.hidden)
            yield "attn_q_a_norm.weight", (self.q_rank,)
            yield "attn_q_b.weight", (rows, self.q_rank)
        else:
            yield "attn_q.weight", (rows, self.hidden)
        yield "attn_kv_a_mqa.weight", (self.kv_rank + self.rope, self.hidden)
        yield "attn_kv_a_norm.weight", (self.kv_rank,)
        if self.legacy:
            yield "attn_kv_b.weight", (self.heads * (self.nope + self.value), self.kv_rank)
        else:
            yield "attn_k_b.weight", (self.heads, self.kv_rank, self.nope)
            yield "attn_v_b.weight", (self.heads, self.value, self.kv_rank)
        yield "attn_output.weight", (self.hidden, self.heads * self.value)

    def _indexer(self) -> Iterator[tuple[str, Shape]]:
        if self.indexer_heads:
            yield "indexer.k_norm.weight", (128,)
            yield "indexer.k_norm.bias", (128,)
            yield "indexer.proj.weight", (self.indexer_heads, self.hidden)
            yield "indexer.attn_k.weight", (128, self.hidden)
            yield "indexer.attn_q_b.weight", (self.indexer_heads * 128, self.q_rank)

    def _ffn(self, layer: int) -> Iterator[tuple[str, Shape]]:
        yield "ffn_norm.weight", (self.hidden,)
        if layer < self.dense or not self.experts:
            yield from _mlp(".weight", self.ffn, self.hidden)
            return
        yield "ffn_gate_inp.weight", (self.experts, self.hidden)
        if self.corrected:
            yield "exp_probs_b.bias", (self.experts,)
        yield from _mlp("_exps.weight", self.expert_ffn, self.hidden, self.experts)
        yield from _mlp("_shexp.weight", self.expert_ffn * self.shared, self.hidden)

    def _prediction(self, layer: int) -> Iterator[tuple[str, Shape]]:
        if layer >= self.layers:
            yield "nextn.eh_proj.weight", (self.hidden, 2 * self.hidden)
            yield "nextn.embed_tokens.weight", (self.vocab, self.hidden)
            yield "nextn.enorm.weight", (self.hidden,)
            yield "nextn.hnorm.weight", (self.hidden,)
            yield "nextn.shared_head_head.weight", (self.vocab, self.hidden)
            yield "nextn.shared_head_norm.weight", (self.hidden,)

    def metadata(self) -> dict[str, Value]:
        """What llama-quantize must read before it decides."""
        integers = {
            "block_count": self.layers + self.mtp,
            "context_length": 4096,
            "embedding_length": self.hidden,
            "feed_forward_length": self.ffn,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.model.kv_heads,
            "attention.q_lora_rank": self.q_rank,
            "attention.kv_lora_rank": self.kv_rank,
            "expert_count": self.experts,
            "expert_used_count": min(2, self.experts),
            "expert_shared_count": self.shared,
            "expert_feed_forward_length": self.expert_ffn,
            "expert_gating_func": 2,
            "leading_dense_block_count": self.dense,
            "vocab_size": self.vocab,
            "rope.dimension_count": self.rope,
            **self._head_lengths(),
            **self._optional(),
        }
        numbered = {f"{self.architecture}.{key}": u32(value) for key, value in integers.items()}
        floats = {f"{self.architecture}.attention.layer_norm_rms_epsilon": f32(1e-6)}
        return {"general.architecture": string(self.architecture), **numbered, **floats}

    def _head_lengths(self) -> dict[str, int]:
        if self.legacy:
            return {"attention.key_length": self.nope + self.rope, "attention.value_length": self.value}
        return {
            "attention.key_length": self.kv_rank + self.rope,
            "attention.value_length": self.kv_rank,
            "attention.key_length_mla": self.nope + self.rope,
            "attention.value_length_mla": self.value,
        }

    def _optional(self) -> dict[str, int]:
        keys = {"nextn_predict_layers": self.mtp} if self.mtp else {}
        if self.indexer_heads:
            keys |= {"attention.indexer.head_count": self.indexer_heads}
            keys |= {"attention.indexer.key_length": 128, "attention.indexer.top_k": 2048}
        return keys


def _mlp(ending: str, inner: int, hidden: int, experts: int = 0) -> Iterator[tuple[str, Shape]]:
    lead = (experts,) if experts else ()
    yield f"ffn_gate{ending}", (*lead, inner, hidden)
    yield f"ffn_down{ending}", (*lead, hidden, inner)
    yield f"ffn_up{ending}", (*lead, inner, hidden)


DEEPSEEK_V3 = Sizes(
    layers=61, dense=3, hidden=7168, heads=128, q_rank=1536, ffn=18432, expert_ffn=2048, experts=256, vocab=129280
)
DEEPSEEK_V2 = Sizes(
    layers=60, hidden=5120, heads=128, q_rank=1536, ffn=12288, expert_ffn=1536, experts=160, shared=2, vocab=102400,
    corrected=False,
)  # fmt: skip
DEEPSEEK_V2_LITE = Sizes(
    layers=27, hidden=2048, heads=16, q_rank=0, ffn=10944, expert_ffn=1408, experts=64, shared=2, vocab=102400,
    corrected=False,
)  # fmt: skip

MODELS: dict[str, Sizes] = {
    # published sizes
    "DeepSeek-V3": DEEPSEEK_V3,
    "DeepSeek-V3-legacy": replace(DEEPSEEK_V3, legacy=True),
    "DeepSeek-V3.2": replace(DEEPSEEK_V3, mtp=1, indexer_heads=64),
    "DeepSeek-V2": DEEPSEEK_V2,
    "DeepSeek-V2-Lite": DEEPSEEK_V2_LITE,
    "DeepSeek-V2-Lite-legacy": replace(DEEPSEEK_V2_LITE, legacy=True),
    # the checkpoints of tests/support/hub.py, and the bundled one
    "v2lite": Sizes(layers=27, q_rank=0, experts=8, shared=2, corrected=False),
    "v2": Sizes(shared=2, corrected=False),
    "v3": Sizes(),
    "v3-f16": Sizes(matrices="F16"),
    "v3-tied": Sizes(tied=True),
    "bundled": Sizes(layers=3, ffn=768, experts=8),
    # what the rules turn on and the above do not show
    "legacy": Sizes(layers=18, legacy=True),
    "legacy-8-experts": Sizes(layers=18, experts=8, legacy=True),
    "legacy-2-experts": Sizes(layers=18, experts=2, legacy=True),
    "legacy-shared-keys": Sizes(layers=18, heads=8, experts=2, legacy=True, heads_per_key=4),
    "legacy-dense": Sizes(layers=18, dense=18, experts=0, legacy=True),
    "dense": Sizes(layers=18, dense=18, experts=0),
    "v32": Sizes(mtp=1, indexer_heads=4),
    "v32-8-experts": Sizes(layers=16, experts=8, mtp=1, indexer_heads=4),
    "narrow": Sizes(layers=9, hidden=320, q_rank=96, kv_rank=96, ffn=272, expert_ffn=48, vocab=999),
    "narrow-output": Sizes(hidden=272, q_rank=128, ffn=512),
    "requantized": Sizes(matrices="Q8_0"),
}
