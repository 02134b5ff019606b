"""DeepSeek-V3.2 (Exp, V3.2, Speciale): V3 with sparse attention, where a lightning indexer chooses what is attended to.

Beside V3's keys, `deepseek32` files carry the indexer and keep the multi-token prediction layers. The light form is a
plain deepseek2 file, which attends to everything, for engines without sparse attention.
Sources: DeepSeek's published configuration and weights; the metadata keys that llama.cpp's deepseek32 reads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gguf_mla.container.values import Value, u32
from gguf_mla.families import deepseek2, prediction
from gguf_mla.families.base import Dimensions, Drop, Family, Layers, Rule

if TYPE_CHECKING:
    from collections.abc import Container

    from gguf_mla.sources.config import Config

ARCHITECTURE, NAME = "deepseek32", "DeepSeek-V3.2"

_LAYER = "model.layers.{layer}."
_INDEXER = _LAYER + "self_attn.indexer."

INDEXER_RULES = (
    Rule("blk.{layer}.indexer.attn_q_b.weight", _INDEXER + "wq_b.weight", ("index_q_rows", "q_rank"), "indexer"),
    Rule("blk.{layer}.indexer.attn_k.weight", _INDEXER + "wk.weight", ("index_key", "hidden"), "indexer"),
    Rule("blk.{layer}.indexer.k_norm.weight", _INDEXER + "k_norm.weight", ("index_key",), "indexer"),
    Rule("blk.{layer}.indexer.k_norm.bias", _INDEXER + "k_norm.bias", ("index_key",), "indexer"),
    Rule("blk.{layer}.indexer.proj.weight", _INDEXER + "weights_proj.weight", ("index_heads", "hidden"), "indexer"),
)
# A layer of the model has an indexer; one that predicts may be stored without.
OPTIONAL_RULES = tuple(replace(rule, when=prediction.WHEN, optional="the indexer") for rule in INDEXER_RULES)
RULES = deepseek2.RULES.with_layer(*INDEXER_RULES, *OPTIONAL_RULES, *prediction.RULES)


def dimensions(config: Config) -> Dimensions:
    """Return the sizes the rules name."""
    heads, key = config.positive("index_n_heads"), config.positive("index_head_dim")
    return {
        **deepseek2.dimensions(config),
        "q_rank": config.positive("q_lora_rank"),
        "index_heads": heads,
        "index_key": key,
        "index_q_rows": heads * key,
    }


def conditions(config: Config, layer: int | None) -> frozenset[str]:
    """Return what holds for the model or for a layer of it."""
    held = deepseek2.conditions(config, layer)
    return held if layer is None or prediction.WHEN in held else held | {"indexer"}


def metadata(config: Config, layers: Layers) -> dict[str, Value]:
    """Return the deepseek32 keys; InputError for a configuration that they cannot express."""
    return {f"{ARCHITECTURE}.{key}": value for key, value in sparse_values(config, layers).items()}


def sparse_values(config: Config, layers: Layers, *, interleaved: bool = False) -> dict[str, Value]:
    """Return the keys of every architecture with this indexer, without its prefix.

    Whether the indexer rotates neighbouring values has no key: readers know it by the architecture.
    """
    dims = dimensions(config)
    if config.flag("indexer_rope_interleave", default=interleaved) != interleaved:
        what = "is not what readers of this architecture take the indexer to do, and no key can tell them,"
        raise config.refuse("indexer_rope_interleave", interleaved, not interleaved, what)
    return {
        **deepseek2.common_values(config, layers, ARCHITECTURE),
        **prediction.values(layers),
        "attention.q_lora_rank": u32(dims["q_rank"]),
        "attention.indexer.head_count": u32(dims["index_heads"]),
        "attention.indexer.key_length": u32(dims["index_key"]),
        "attention.indexer.top_k": u32(config.positive("index_topk")),
    }


def _light_drops(config: Config, names: Container[str]) -> tuple[Drop, ...]:
    indexer = Drop(
        r"model\.layers\.\d+\.self_attn\.indexer\..+", "the indexer, without which all tokens are attended to"
    )
    return (*deepseek2.drops(config, names), indexer)


FAMILY = Family(
    architecture=ARCHITECTURE,
    classes=frozenset({"DeepseekV32ForCausalLM"}),
    rules=RULES,
    layers_in=prediction.layers_in,
    dimensions=dimensions,
    conditions=conditions,
    drops=deepseek2.drops,
    metadata=metadata,
    warnings=deepseek2.warnings,
    # It ships no chat template: the published prompt scripts write the bos, so some of its files say there is none.
    bos_first=NAME,
    fixed={".indexer.proj.weight": "F32"},
    light=replace(deepseek2.FAMILY, drops=_light_drops, bos_first=NAME),
)
