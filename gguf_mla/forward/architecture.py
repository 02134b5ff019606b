"""What an architecture says of itself, and which there are.

A file of this package that defines ARCHITECTURE is one; nothing else has to name it.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gguf_mla import discovery, forward
from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from gguf_mla.container.reader import GgufFile
    from gguf_mla.forward.arrays import Floats, Numbers
    from gguf_mla.forward.layers import Pass
    from gguf_mla.forward.model import Model
    from gguf_mla.forward.tensors import Roles
    from gguf_mla.sources.config import Config

State = Any
"""What goes from layer to layer: a tensor [B, T, ...] of sequences and their tokens; the rest its architecture says."""


@dataclass(frozen=True)
class Experts:
    """How a layer gets to its experts and away from them, for whoever computes these himself; states are [N, ...].

    enter  layer, states → what the router, the experts and the shared experts read, [N, hidden]
    route  layer, that, tokens [N] → every token's experts and their weights, [N, K]
    leave  layer, states, what all experts add to them [N, hidden] → the states after the layer
    """

    enter: Callable[[Pass, int, State], Floats]
    route: Callable[[Pass, int, Floats, Numbers], tuple[Numbers, Floats]]
    leave: Callable[[Pass, int, State, Floats], State]


@dataclass(frozen=True)
class Predicting:
    """What is around the block of a layer of multi-token prediction; `States` go from one such layer to the next.

    begin  the state after the model's last layer → what the first such layer reads
    enter  layer, States of tokens [B, T], these → the state before the block, of T-1 tokens
    leave  layer, the state after the block → States
    read   layer, States → normed hidden states, which the layer's head reads
    """

    begin: Callable[[Pass, State], State]
    enter: Callable[[Pass, int, State, Numbers], State]
    leave: Callable[[Pass, int, State], State]
    read: Callable[[Pass, int, State], Floats]


@dataclass(frozen=True)
class Architecture:
    """How models of one architecture are read and computed; tokens are int64 [B, T], hidden states [B, T, hidden].

    name        by which its models name it, `Model.architecture`
    classes     what config.json calls it, read by `of_config` with the names of the checkpoint's tensors
    gguf_names  what general.architecture calls it, read by `of_gguf`
    roles       its tensors
    attends     the matrices that attention multiplies by, without `blk.N.` and `.weight`
    embed       tokens → the state before the first layer
    attend      layer, the state before it, tokens → the state after its attention, the only part where tokens meet
    feed        layer, that state, tokens → the state after the layer; token by token, so that B and T may be any
    finish      the state after the last layer → normed hidden states, which the output head reads
    attention   layer, hidden states, tokens → what the layer's attention adds to them
    experts     the parts of `feed` around the experts
    predicting  what is around the block of a layer that predicts
    """

    name: str
    classes: tuple[str, ...]
    gguf_names: tuple[str, ...]
    of_config: Callable[[Config, Container[str]], Model]
    of_gguf: Callable[[GgufFile], Model]
    roles: Roles
    attends: tuple[str, ...]
    embed: Callable[[Pass, Numbers], State]
    attend: Callable[[Pass, int, State, Numbers], State]
    feed: Callable[[Pass, int, State, Numbers], State]
    finish: Callable[[Pass, State], Floats]
    attention: Callable[[Pass, int, Floats, Numbers], Floats]
    experts: Experts
    predicting: Predicting


@functools.cache
def architectures() -> Mapping[str, Architecture]:
    """Return every architecture by name."""
    modules = map(importlib.import_module, discovery.modules(forward.__name__, forward.__path__))
    found = [module.ARCHITECTURE for module in modules if hasattr(module, "ARCHITECTURE")]
    return MappingProxyType({architecture.name: architecture for architecture in found})


def architecture_of(model: Model) -> Architecture:
    """Return the architecture that computes a model."""
    return architectures()[model.architecture]


def read_config(config: Config, names: Container[str] = ()) -> Model:
    """Return the model that a config.json describes; `names` are the checkpoint's tensors.

    InputError for a class that no architecture reads, and for a configuration that cannot be used.
    """
    stated = config.first("architectures")
    for architecture in architectures().values():
        if stated in architecture.classes:
            return architecture.of_config(config, names)
    expected = " or ".join(classes())
    raise InputError("no forward pass knows this class", file=config.file, expected=expected, found=stated)


def read_gguf(file: GgufFile) -> Model:
    """Return the model that a GGUF file's metadata describe; InputError as for a config.json."""
    stated = file.metadata.get("general.architecture")
    for architecture in architectures().values():
        if stated in architecture.gguf_names:
            return architecture.of_gguf(file)
    expected = " or ".join(gguf_names())
    raise InputError("no forward pass knows this architecture", file=file.path, expected=expected, found=stated)


def classes() -> tuple[str, ...]:
    """Return the names that config.json may have for an architecture."""
    return tuple(name for architecture in architectures().values() for name in architecture.classes)


def gguf_names() -> tuple[str, ...]:
    """Return the names that general.architecture may have for one."""
    return tuple(name for architecture in architectures().values() for name in architecture.gguf_names)
