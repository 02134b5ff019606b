"""GLM-5, 5.1, 5.2 and 5.3: V3.2's sparse attention, with an indexer that rotates neighbouring pairs.

GLM-5.2 and 5.3 have an indexer in some layers only; the others use the choice of the one before them.
Sources: Z.ai's published configurations; the metadata keys that llama.cpp's glm-dsa reads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gguf_mla.container.values import Kind, Value, array
from gguf_mla.families import deepseek2, deepseek32
from gguf_mla.families.glm4_moe_lite import SPECIALS

if TYPE_CHECKING:
    from gguf_mla.families.base import Layers
    from gguf_mla.sources.config import Config

ARCHITECTURE = "glm-dsa"


def conditions(config: Config, layer: int | None) -> frozenset[str]:
    """Return what holds for the model or for a layer of it."""
    own = _own_indexer(config)
    held = deepseek2.conditions(config, layer)
    return held | {"indexer"} if layer is not None and layer < len(own) and own[layer] else held


def metadata(config: Config, layers: Layers) -> dict[str, Value]:
    """Return the glm-dsa keys; InputError for a configuration that they cannot express."""
    types = array(Kind.BOOL, _own_indexer(config))
    values = deepseek32.sparse_values(config, layers, interleaved=True) | {"attention.indexer.types": types}
    return {f"{ARCHITECTURE}.{key}": value for key, value in values.items()}


def _own_indexer(config: Config) -> list[bool]:
    """Return of each layer, but for prediction, whether it has an indexer of its own.

    They are listed, by word or by letter, or every so many layers after the first few have one.
    """
    layers = config.positive("num_hidden_layers")
    key = "indexer_types" if config.has("indexer_types") else "index_topk_pattern"
    if not config.has(key):
        every, first = max(config.integer("index_topk_freq", 1), 1), config.integer("index_skip_topk_offset", 2)
        return [max(layer - first + 1, 0) % every == 0 for layer in range(layers)]
    kinds = config.content[key]
    full, shared = ("full", "shared") if key == "indexer_types" else ("F", "S")
    known = isinstance(kinds, (list, str)) and all(kind in (full, shared) for kind in kinds)
    if not known or len(kinds) != layers or kinds[0] != full:
        raise config.refuse(key, f'"{full}", then {layers - 1} times "{full}" or "{shared}"', kinds)
    return [kind == full for kind in kinds]


FAMILY = replace(
    deepseek32.FAMILY,
    architecture=ARCHITECTURE,
    classes=frozenset({"GlmMoeDsaForCausalLM"}),
    conditions=conditions,
    metadata=metadata,
    specials=SPECIALS,
    bos_first="",
    light=None,
)
