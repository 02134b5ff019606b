"""How a family's rules become jobs: every source tensor is used or dropped by name, every output has its source."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.plan.halves import key_parts, value_parts
from gguf_mla.plan.jobs import Part, Untyped

if TYPE_CHECKING:
    from gguf_mla.container.values import Value
    from gguf_mla.sources.checkpoint import Checkpoint
    from gguf_mla.sources.config import Config
    from gguf_mla.sources.tensor import SourceTensor

Dimensions = Mapping[str, int]
SHOWN = 8  # missing tensors named in an error


@dataclass(frozen=True)
class Rule:
    """One output tensor (or one per layer, where a name holds {layer}).

    output, source  names; the source of a stack holds {expert}
    shape           the source's shape, in names of the family's dimensions
    when            the condition under which the tensor exists, "always" or one the family names for a model or layer
    form            "whole"; "stack": one part per expert; "key", "value": the halves of kv_b_proj
    """

    output: str
    source: str
    shape: tuple[str, ...]
    when: str = "always"
    form: str = "whole"


@dataclass(frozen=True)
class Drop:
    """Source tensors that an output does not need: a pattern for the whole name, and why they are dropped."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class Family:
    """A model family as data.

    architecture  the GGUF architecture name
    classes       the entries of config.json's `architectures` it stands for
    rules         in the order of the output file
    dimensions    the sizes that the rules name; "layers" and "experts" are needed
    conditions    what holds for a layer (None: for the model), the words in `Rule.when`
    drops         what a file of this configuration does without, given the names of the source tensors
    metadata      the architecture's keys
    warnings      sentences on what an engine will compute otherwise
    specials      special tokens that the family has under names of its own: a role (bos, eot) and the token's text
    bos_first     whether a prompt begins with bos whatever the tokenizer's files say
    light         the family as whose model it can be written with less, for engines that do not know this one
    """

    architecture: str
    classes: frozenset[str]
    rules: tuple[Rule, ...]
    dimensions: Callable[[Config], Dimensions]
    conditions: Callable[[Config, int | None], frozenset[str]]
    drops: Callable[[Config, Container[str]], tuple[Drop, ...]]
    metadata: Callable[[Config], dict[str, Value]]
    warnings: Callable[[Config], list[str]]
    specials: Mapping[str, str] = field(default_factory=dict)
    bos_first: bool = False
    light: Family | None = None


def outputs(family: Family, config: Config, checkpoint: Checkpoint) -> tuple[list[Untyped], dict[str, str]]:
    """Return the outputs in file order and the dropped tensors with their reasons.

    InputError lists every tensor that is missing and every one that no rule knows; another names a wrong shape.
    """
    dims = family.dimensions(config)
    _check_counts(config, dims, len(checkpoint.tensors))
    wanted = list(_instances(family, config, dims))
    needed = {source for instance in wanted for source in instance.sources}
    missing = [source for instance in wanted for source in instance.sources if source not in checkpoint.tensors]
    others = [name for name in checkpoint.tensors if name not in needed]
    dropped, unknown = _sort_out(others, family.drops(config, checkpoint.tensors))
    if missing or unknown:
        raise _mismatch(family, checkpoint, list(dict.fromkeys(missing)), unknown)
    return [_output(instance, dims, checkpoint.tensors, checkpoint) for instance in wanted], dropped


def source_shapes(family: Family, config: Config) -> dict[str, tuple[int, ...]]:
    """Return every source tensor that a model of this configuration has, with its shape, layer by layer."""
    dims = family.dimensions(config)
    return {
        source: tuple(dims[size] for size in instance.rule.shape)
        for instance in _instances(family, config, dims)
        for source in instance.sources
    }


def _check_counts(config: Config, dims: Dimensions, stored: int) -> None:
    # Before lists of that length are built: each layer and each expert has a tensor at least.
    for key, size in (("num_hidden_layers", "layers"), ("n_routed_experts", "experts")):
        if dims[size] > stored:
            raise config.refuse(key, f"at most {stored}, the number of tensors", dims[size])


@dataclass(frozen=True)
class _Instance:
    rule: Rule
    output: str
    sources: tuple[str, ...]


def _instances(family: Family, config: Config, dims: Dimensions) -> Iterator[_Instance]:
    model = family.conditions(config, None)
    layers = [(layer, family.conditions(config, layer)) for layer in range(dims["layers"])]
    per_layer = [rule for rule in family.rules if "{layer}" in rule.output]
    first = family.rules.index(per_layer[0])
    for rule in family.rules[:first]:
        yield from _instance(rule, model, None, dims)
    for layer, conditions in layers:
        for rule in per_layer:
            yield from _instance(rule, conditions, layer, dims)
    for rule in family.rules[first + len(per_layer) :]:
        yield from _instance(rule, model, None, dims)


def _instance(rule: Rule, conditions: frozenset[str], layer: int | None, dims: Dimensions) -> Iterator[_Instance]:
    if rule.when != "always" and rule.when not in conditions:
        return
    experts = range(dims["experts"]) if rule.form == "stack" else (None,)
    sources = tuple(rule.source.format(layer=layer, expert=expert) for expert in experts)
    yield _Instance(rule, rule.output.format(layer=layer), sources)


def _sort_out(names: list[str], drops: tuple[Drop, ...]) -> tuple[dict[str, str], list[str]]:
    """Return the names that are dropped with their reasons, and those nobody knows."""
    compiled = [(re.compile(drop.pattern), drop.reason) for drop in drops]
    dropped: dict[str, str] = {}
    unknown = []
    for name in names:
        reason = next((reason for pattern, reason in compiled if pattern.fullmatch(name)), None)
        if reason is None:
            unknown.append(name)
        else:
            dropped[name] = reason
    return dropped, unknown


def _mismatch(family: Family, checkpoint: Checkpoint, missing: list[str], unknown: list[str]) -> InputError:
    # Every unknown name has to be explained; of the missing ones, the first show which shard or layer it is.
    shown = [*missing[:SHOWN], f"and {len(missing) - SHOWN} more"] if len(missing) > SHOWN else missing
    lists = [
        f"{len(names)} tensor{'s' * (len(names) > 1)} {what}: {', '.join(listed)}"
        for what, names, listed in (("missing", missing, shown), ("that no rule uses or drops", unknown, unknown))
        if names
    ]
    remedy = (
        "Download the missing shards"
        if missing
        else "The configuration and the weights do not belong together, or this variant is not supported"
    )
    return InputError(
        f"the weights are not those of a {family.architecture} model: {'; '.join(lists)}",
        file=checkpoint.directory,
        remedy=remedy,
    )


def _output(
    instance: _Instance, dims: Dimensions, tensors: Mapping[str, SourceTensor], checkpoint: Checkpoint
) -> Untyped:
    expected = tuple(dims[size] for size in instance.rule.shape)
    for source in instance.sources:
        if tensors[source].shape != expected:
            named = " x ".join(instance.rule.shape)
            raise InputError(
                "has the wrong shape",
                file=checkpoint.directory,
                tensor=source,
                expected=f"{list(expected)} ({named})",
                found=list(tensors[source].shape),
            )
    shape, parts = _FORMS[instance.rule.form](instance.sources, expected, dims)
    copied = {None if part.transposed else tensors[part.source].raw_type for part in parts}
    ggml_type = copied.pop() if len(copied) == 1 else None
    return Untyped(instance.output, shape, parts, tensors[instance.sources[0]].stored, ggml_type)


def _whole(
    sources: tuple[str, ...], shape: tuple[int, ...], _dims: Dimensions
) -> tuple[tuple[int, ...], tuple[Part, ...]]:
    return shape, (Part(sources[0], 0, math.prod(shape[:-1])),)


def _stack(
    sources: tuple[str, ...], shape: tuple[int, ...], _dims: Dimensions
) -> tuple[tuple[int, ...], tuple[Part, ...]]:
    return (len(sources), *shape), tuple(Part(source, 0, shape[0]) for source in sources)


def _key(
    sources: tuple[str, ...], shape: tuple[int, ...], dims: Dimensions
) -> tuple[tuple[int, ...], tuple[Part, ...]]:
    heads, nope, value = dims["heads"], dims["nope"], dims["value"]
    return (heads, shape[1], nope), key_parts(sources[0], heads, nope, value, shape[1])


def _value(
    sources: tuple[str, ...], shape: tuple[int, ...], dims: Dimensions
) -> tuple[tuple[int, ...], tuple[Part, ...]]:
    heads, nope, value = dims["heads"], dims["nope"], dims["value"]
    return (heads, value, shape[1]), value_parts(sources[0], heads, nope, value)


_FORMS = {"whole": _whole, "stack": _stack, "key": _key, "value": _value}
