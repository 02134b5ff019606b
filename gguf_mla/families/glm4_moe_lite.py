"""GLM-4.7-Flash: V3's model with other heads (n 192, v 256), in a deepseek2 file that keeps multi-token prediction.

Sources: Z.ai's published configuration; the metadata keys that llama.cpp's deepseek2 reads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gguf_mla.families import deepseek2, prediction

if TYPE_CHECKING:
    from gguf_mla.container.values import Value
    from gguf_mla.families.base import Dimensions, Layers
    from gguf_mla.sources.config import Config

# What GLM's vocabulary calls them; <|endoftext|> as the end of a turn would never be reached.
SPECIALS = {"bos": "[gMASK]", "eot": "<|user|>", "unk": "<|endoftext|>", "eom": "<|observation|>"}


def dimensions(config: Config) -> Dimensions:
    """Return the sizes the rules name."""
    return prediction.dimensions(deepseek2.dimensions(config))


def conditions(config: Config, layer: int | None) -> frozenset[str]:
    """Return what holds for the model or for a layer of it."""
    return deepseek2.conditions(config, layer) | prediction.conditions(config, layer)


def metadata(config: Config, layers: Layers) -> dict[str, Value]:
    """Return the deepseek2 keys; InputError for a configuration that they cannot express."""
    predicting = {f"{deepseek2.ARCHITECTURE}.{key}": value for key, value in prediction.values(layers).items()}
    return deepseek2.metadata(config, layers) | predicting


FAMILY = replace(
    deepseek2.FAMILY,
    classes=frozenset({"Glm4MoeLiteForCausalLM"}),
    rules=deepseek2.RULES.with_layer(*prediction.RULES),
    layers_in=prediction.layers_in,
    dimensions=dimensions,
    conditions=conditions,
    metadata=metadata,
    specials=SPECIALS,
)
