"""A model cut into sections, in the order of its computation: all levels go through one before any goes to the next.

So each part of both files is read from the disk once, and found in memory by the levels that come after the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from gguf_mla.layout.names import split_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gguf_mla.container.reader import GgufTensor
    from gguf_mla.forward.model import Model


class Kind(StrEnum):
    """What a section is: what comes before the layers, one of them, what comes after, a layer that predicts."""

    EMBEDDINGS = "embeddings"
    LAYER = "layer"
    HEAD = "head"
    PREDICTION = "prediction"


@dataclass(frozen=True)
class Section:
    """A part of a model; `layer` is the number of its layer, -1 where it has none."""

    kind: Kind
    layer: int = -1


def sections(model: Model) -> list[Section]:
    """Return a model's sections in order."""
    layers = [Section(Kind.LAYER, layer) for layer in range(model.layers)]
    predictions = [Section(Kind.PREDICTION, layer) for layer in range(model.layers, model.blocks)]
    return [Section(Kind.EMBEDDINGS), *layers, Section(Kind.HEAD), *predictions]


def section_of(name: str, model: Model) -> Section:
    """Return the section in which a tensor is read: embeddings that are the output's weights, too, with the head."""
    layer, _ = split_name(name)
    if layer is None:
        return Section(Kind.EMBEDDINGS if name == "token_embd.weight" and not model.tied else Kind.HEAD)
    return Section(Kind.LAYER if layer < model.layers else Kind.PREDICTION, layer)


def by_section(tensors: Iterable[GgufTensor], model: Model) -> Mapping[Section, list[GgufTensor]]:
    """Return the tensors of every section, in the order in which they are given."""
    found: dict[Section, list[GgufTensor]] = {section: [] for section in sections(model)}
    for tensor in tensors:
        found[section_of(tensor.name, model)].append(tensor)
    return found
