"""Mistral-Small-4: V3's attention with queries that grow with their position, and experts chosen by softmax.

A query at position t is multiplied by 1 + β·ln(1 + ⌊t / L⌋), L the context before YaRN, as Llama 4's are. Its published
form also sees, of which the text model is converted. Experts are stored stacked, gate and up in one tensor, and are
written so.
Sources: transformers' configuration and modelling code; the metadata keys that llama.cpp's mistral4 reads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gguf_mla.container.values import Value, f32, u32
from gguf_mla.families import deepseek2, kimi_vl
from gguf_mla.families.base import Rule, stack_pairs

if TYPE_CHECKING:
    from gguf_mla.families.base import Layers
    from gguf_mla.sources.config import Config

ARCHITECTURE = "mistral4"

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
    return {f"{ARCHITECTURE}.{key}": value for key, value in (values | temperature(config)).items()}


def temperature(config: Config) -> dict[str, Value]:
    """Return the keys of queries that grow with their position, without a prefix; none where they do not.

    llama.cpp's converter leaves them out for this model, so that its files are wrong beyond the first L tokens.
    """
    rope = config.section("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
    beta = rope.number("llama_4_scaling_beta", 0.0)
    if not beta:
        return {}
    length = rope.positive("original_max_position_embeddings")
    return {"attention.temperature_scale": f32(beta), "attention.temperature_length": u32(length)}


FAMILY = replace(
    deepseek2.FAMILY,
    architecture=ARCHITECTURE,
    classes=frozenset({"Mistral3ForConditionalGeneration", "Mistral4ForCausalLM"}),
    rules=RULES,
    drops=kimi_vl.drops,
    metadata=metadata,
    unsaid={"topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": True, "first_k_dense_replace": 0},
)
