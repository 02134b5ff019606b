"""Mistral-Small-4: V3's attention with queries that grow with their position, and experts chosen by softmax.

Its published form also sees, of which the text model is converted. Experts are stored stacked, gate and up in one
tensor, and are written so.
Sources: transformers' configuration and modelling code; the metadata keys that llama.cpp's mistral4 reads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gguf_mla.container.values import Value, u32
from gguf_mla.families import deepseek2, kimi_vl
from gguf_mla.families.base import Rule, stack_pairs

if TYPE_CHECKING:
    from gguf_mla.families.base import Layers
    from gguf_mla.sources.config import Config

ARCHITECTURE = "mistral4"
UNSAID = {"topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": True, "first_k_dense_replace": 0}

_EXPERT = "model.layers.{layer}.mlp.experts.{expert}."
_PAIRS = Rule(
    "blk.{layer}.ffn_gate_up_exps.weight", _EXPERT + "gate_proj.weight", ("expert_ffn", "hidden"), "moe", stack_pairs,
    beside=_EXPERT + "up_proj.weight",
)  # fmt: skip
RULES = deepseek2.RULES.without_layer("blk.{layer}.ffn_gate_exps.weight", "blk.{layer}.ffn_up_exps.weight").with_layer(
    _PAIRS
)


def metadata(config: Config, layers: Layers) -> dict[str, Value]:
    """Return the mistral4 keys; InputError for a configuration that they cannot express, as other Mistrals have."""
    if config.choice("model_type", ("mistral4", "mistral3", "mistral", "ministral3"), "mistral4") != "mistral4":
        what = "is another model's of the same class: it has no latent attention, and the public converter writes it"
        raise config.refuse("model_type", "mistral4", config.content["model_type"], what)
    values = deepseek2.common_values(config, layers, ARCHITECTURE)
    values["attention.q_lora_rank"] = u32(config.integer("q_lora_rank", 0))
    return {f"{ARCHITECTURE}.{key}": value for key, value in values.items()}


FAMILY = replace(
    deepseek2.FAMILY,
    architecture=ARCHITECTURE,
    classes=frozenset({"Mistral3ForConditionalGeneration", "Mistral4ForCausalLM"}),
    rules=RULES,
    drops=kimi_vl.drops,
    metadata=metadata,
    unsaid=UNSAID,
)
