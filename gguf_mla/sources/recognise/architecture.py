"""A configuration that does not name its class, as tools write it that build a config.json by hand.

`architectures` is missing or empty, or names what wrapped the model when it was saved: then `model_type` says it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gguf_mla.sources.recognise.reading import Reading

# Where the class is not the model type in capitals with ForCausalLM after it.
IRREGULAR = {
    "kimi_k2": "DeepseekV3ForCausalLM",
    "kimi_vl": "KimiVLForConditionalGeneration",
    "kimi_k25": "KimiK25ForConditionalGeneration",
}
WRAPPER = "FSDP"  # put before the class by transformers when a model is saved under FSDP


def recognise(reading: Reading) -> Reading:
    """Return the reading with a class, taken from `model_type` where `architectures` has none."""
    listed = reading.config.get("architectures")
    first = listed[0] if isinstance(listed, list) and listed else None
    if isinstance(first, str) and first.startswith(WRAPPER):
        return _named(reading, first.removeprefix(WRAPPER), f"architectures says {first:.80}")
    kind = reading.config.get("model_type")
    if not isinstance(kind, str) or not kind:
        return reading
    if listed is None or listed == []:
        return _named(reading, class_of(kind), "config.json names no architectures")
    if isinstance(first, str) and (first.startswith("Peft") or first == _bare(kind)):
        return _named(reading, class_of(kind), f"architectures says {first:.80}")
    return reading


def class_of(model_type: str) -> str:
    """Return the class that transformers has for a model type."""
    return IRREGULAR.get(model_type) or _capitals(model_type) + "ForCausalLM"


def _bare(model_type: str) -> str:
    return class_of(model_type).removesuffix("ForCausalLM") + "Model"


def _capitals(model_type: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in model_type.split("_"))


def _named(reading: Reading, name: str, why: str) -> Reading:
    return reading.configured(architectures=[name]).noted(f"architecture: {why}; the model is read as {name:.80}.")
