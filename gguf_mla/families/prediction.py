"""Multi-token prediction: a block behind the last layer that guesses the token after the next, as families store it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.container.values import Value, u32
from gguf_mla.families.base import Dimensions, Rule

if TYPE_CHECKING:
    from collections.abc import Container

    from gguf_mla.sources.config import Config

DEPTH = 8  # layers behind the last that are looked at
_LAYER = "model.layers.{layer}."

# Beside the rules of an ordinary layer, which it also is.
RULES = (
    Rule("blk.{layer}.nextn.embed_tokens.weight", _LAYER + "embed_tokens.weight", ("vocab", "hidden"), "prediction"),
    Rule("blk.{layer}.nextn.enorm.weight", _LAYER + "enorm.weight", ("hidden",), "prediction"),
    Rule("blk.{layer}.nextn.hnorm.weight", _LAYER + "hnorm.weight", ("hidden",), "prediction"),
    Rule("blk.{layer}.nextn.eh_proj.weight", _LAYER + "eh_proj.weight", ("hidden", "2 hidden"), "prediction"),
    Rule("blk.{layer}.nextn.shared_head_norm.weight", _LAYER + "shared_head.norm.weight", ("hidden",), "prediction"),
    Rule(
        "blk.{layer}.nextn.shared_head_head.weight",
        _LAYER + "shared_head.head.weight",
        ("vocab", "hidden"),
        "prediction",
    ),
)


def layers_in(config: Config, names: Container[str]) -> list[int]:
    """Return the layers behind the last that hold multi-token prediction.

    A layer behind the last is that only if it has eh_proj; another is a layer the configuration fails to count, and
    dropping that would be silent damage. num_nextn_predict_layers is often stated wrongly.
    """
    first = config.positive("num_hidden_layers")
    return [layer for layer in range(first, first + DEPTH) if f"model.layers.{layer}.eh_proj.weight" in names]


def dimensions(config: Config, dims: Dimensions) -> Dimensions:
    """Return a family's sizes with the prediction layers, as num_nextn_predict_layers counts them, among the layers."""
    layers = dims["layers"] + config.integer("num_nextn_predict_layers", 0)
    return {**dims, "layers": layers, "2 hidden": 2 * dims["hidden"]}


def conditions(config: Config, layer: int | None) -> frozenset[str]:
    """Return what holds for a layer beside what its family says."""
    behind = layer is not None and layer >= config.positive("num_hidden_layers")
    return frozenset({"prediction"}) if behind else frozenset()


def values(config: Config) -> dict[str, Value]:
    """Return the keys, without the architecture's prefix, that say how many layers there are."""
    predicting = config.integer("num_nextn_predict_layers", 0)
    layers = {"block_count": u32(config.positive("num_hidden_layers") + predicting)}
    return layers | ({"nextn_predict_layers": u32(predicting)} if predicting else {})
