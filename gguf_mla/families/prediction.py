"""Multi-token prediction: a block after the last layer that guesses the token after the next, as families store it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.container.values import Value, u32
from gguf_mla.errors import InputError
from gguf_mla.families.base import Dimensions, Layers, Rule

if TYPE_CHECKING:
    from collections.abc import Container

    from gguf_mla.families.base import Family
    from gguf_mla.sources.config import Config

DEPTH = 8  # layers after the last that are looked at
KEEP, DROP, ONLY = "keep", "drop", "only"  # what may be wanted of it
WHEN = "prediction"  # the condition of its rules
_LAYER = "model.layers.{layer}."

# Beside the rules of an ordinary layer, which it also is. Later models share embeddings and output with the model.
RULES = (
    Rule(
        "blk.{layer}.nextn.embed_tokens.weight",
        _LAYER + "embed_tokens.weight",
        ("vocab", "hidden"),
        WHEN,
        optional="the embeddings",
    ),
    Rule("blk.{layer}.nextn.enorm.weight", _LAYER + "enorm.weight", ("hidden",), WHEN),
    Rule("blk.{layer}.nextn.hnorm.weight", _LAYER + "hnorm.weight", ("hidden",), WHEN),
    Rule("blk.{layer}.nextn.eh_proj.weight", _LAYER + "eh_proj.weight", ("hidden", "2 hidden"), WHEN),
    Rule("blk.{layer}.nextn.shared_head_norm.weight", _LAYER + "shared_head.norm.weight", ("hidden",), WHEN),
    Rule(
        "blk.{layer}.nextn.shared_head_head.weight",
        _LAYER + "shared_head.head.weight",
        ("vocab", "hidden"),
        WHEN,
        optional="the output matrix",
    ),
)


def found(config: Config, names: Container[str]) -> list[int]:
    """Return the numbers of the layers after the last that hold multi-token prediction.

    A layer after the last is that only if it has eh_proj; another is a layer the configuration fails to count, and
    dropping that would be silent damage. num_nextn_predict_layers is often stated wrongly.
    """
    first = config.positive("num_hidden_layers")
    return [layer for layer in range(first, first + DEPTH) if _mark(layer) in names]


def layers_in(config: Config, names: Container[str]) -> Layers:
    """Return the layers of a family whose files keep multi-token prediction."""
    return Layers(config.positive("num_hidden_layers"), len(found(config, names)))


def chosen(family: Family, config: Config, names: Container[str], wish: str | None) -> Layers:
    """Return the layers of a family's file: as is usual with it, or with prediction kept, dropped, or alone (only).

    InputError where there is nothing to keep, or no place for it in the files of this family, or none beside a model.
    """
    usual, there = family.layers_in(config, names), len(found(config, names))
    if wish is None or wish == DROP:
        return usual if wish is None else Layers(usual.ordinary)
    if not any(rule.when == WHEN for rule in family.rules.layer):
        what = f"--mtp {wish} is not for {family.architecture} files, which have no place for multi-token prediction"
        raise InputError(what, file=config.file, remedy="Leave it out")
    if wish == KEEP and family.apart:
        what = f"--mtp keep is not for {family.architecture} files: {family.apart}"
        raise InputError(what, file=config.file, remedy="--mtp only writes it into a file beside the model's")
    if not there:
        raise InputError(
            f"--mtp {wish}: the checkpoint has no multi-token prediction",
            file=config.file.parent,
            expected=_mark(usual.ordinary),
            found="no tensor of this name",
        )
    return Layers(usual.ordinary, there, usual.ordinary if wish == ONLY else 0)


def warnings(config: Config, layers: Layers) -> list[str]:
    """Return why llama.cpp (b11434) will not draft with the prediction of a file that says it has some."""
    reasons = {
        "more than one prediction layer": layers.predicting > 1,
        "queries without a low rank": layers.predicting > 0 and not config.has("q_lora_rank"),
        "no experts": layers.predicting > 0 and not config.integer("n_routed_experts", 0),
    }
    return [
        f"The model has {what}, and llama.cpp drafts tokens only for models with one prediction layer, a low-rank q "
        "and experts."
        for what, holds in reasons.items()
        if holds
    ]


def stated(config: Config) -> frozenset[str]:
    """Return what tells the prediction layers that num_nextn_predict_layers states: a source's name for each."""
    first = config.positive("num_hidden_layers")
    return frozenset(_mark(first + number) for number in range(config.integer("num_nextn_predict_layers", 0)))


def _mark(layer: int) -> str:
    return f"model.layers.{layer}.eh_proj.weight"


def dimensions(dims: Dimensions) -> Dimensions:
    """Return a family's sizes with that of the prediction layers' input."""
    return {**dims, "2 hidden": 2 * dims["hidden"]}


def conditions(config: Config, layer: int | None) -> frozenset[str]:
    """Return what holds for a layer beside what its family says."""
    predicting = layer is not None and layer >= config.positive("num_hidden_layers")
    return frozenset({WHEN}) if predicting else frozenset()


def values(layers: Layers) -> dict[str, Value]:
    """Return the key, without the architecture's prefix, that says how many layers predict; none where none does."""
    return {"nextn_predict_layers": u32(layers.predicting)} if layers.predicting else {}
