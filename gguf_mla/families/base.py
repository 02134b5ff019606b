"""How a family's rules become jobs: every source tensor is used or dropped by name, every output has its source."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from gguf_mla.errors import InputError
from gguf_mla.plan.halves import key_parts, value_parts
from gguf_mla.plan.jobs import Part, Untyped

if TYPE_CHECKING:
    from gguf_mla.container.values import Value
    from gguf_mla.sources.checkpoint import Checkpoint
    from gguf_mla.sources.config import Config
    from gguf_mla.sources.tensor import SourceTensor

Dimensions = Mapping[str, int]
HEAD = "lm_head.weight"
# Conditions of what a file ends with: whether it holds the model, or prediction alone, whose first layer is {layer}.
WHOLE, ALONE = "whole", "alone"
PATTERNS, EXAMPLES = 3, 5  # that an error shows of many names
LISTED = 8  # names in an error that are all shown; of more, patterns and examples are
_NUMBER = re.compile(r"\d+")


class Formed(NamedTuple):
    """What a rule makes of its sources: the output's shape, slowest dimension first, and where its rows come from."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]


# From the names of the sources, the shape that each of them has, and the family's dimensions.
Form = Callable[[tuple[str, ...], tuple[int, ...], Dimensions], Formed]


def whole(sources: tuple[str, ...], shape: tuple[int, ...], _dims: Dimensions) -> Formed:
    """Take the source as it is."""
    return Formed(shape, (Part(sources[0], 0, math.prod(shape[:-1])),))


def stack(sources: tuple[str, ...], shape: tuple[int, ...], _dims: Dimensions) -> Formed:
    """Stack the sources [rows, cols] of all experts: [experts, rows, cols]."""
    return Formed((len(sources), *shape), tuple(Part(source, 0, shape[0]) for source in sources))


def stack_pairs(sources: tuple[str, ...], shape: tuple[int, ...], _dims: Dimensions) -> Formed:
    """Stack pairs of sources [rows, cols], one pair for each expert: [experts, 2·rows, cols]."""
    return Formed((len(sources) // 2, 2 * shape[0], shape[1]), tuple(Part(source, 0, shape[0]) for source in sources))


def key_half(sources: tuple[str, ...], shape: tuple[int, ...], dims: Dimensions) -> Formed:
    """Take the keys of kv_b_proj [H·(n+v), r], transposed: [H, r, n]."""
    heads, nope, value = dims["heads"], dims["nope"], dims["value"]
    return Formed((heads, shape[1], nope), key_parts(sources[0], heads, nope, value, shape[1]))


def value_half(sources: tuple[str, ...], shape: tuple[int, ...], dims: Dimensions) -> Formed:
    """Take the values of kv_b_proj [H·(n+v), r]: [H, v, r]."""
    heads, nope, value = dims["heads"], dims["nope"], dims["value"]
    return Formed((heads, value, shape[1]), value_parts(sources[0], heads, nope, value))


@dataclass(frozen=True)
class Rule:
    """One output tensor (or one per layer, where a name holds {layer}).

    output, source  names; a source that holds {expert} stands for one of each expert
    shape           the source's shape, in names of the family's dimensions
    beside          another source like the first, whose rows come after it, or after each expert's
    when            the condition under which the tensor exists, "always" or one the family names for a model or layer
    form            what is made of the sources
    optional        what the tensor belongs to that a layer may be stored without: all of it is there, or nothing
    """

    output: str
    source: str
    shape: tuple[str, ...]
    when: str = "always"
    form: Form = whole
    optional: str = ""
    beside: str = ""


@dataclass(frozen=True)
class Rules:
    """The rules in the order of the output file: what comes first, what each layer has, and what comes last."""

    first: tuple[Rule, ...]
    layer: tuple[Rule, ...]
    last: tuple[Rule, ...]

    def with_layer(self, *rules: Rule) -> Rules:
        """Return the rules with more of them for every layer."""
        return replace(self, layer=(*self.layer, *rules))

    def without_layer(self, *outputs: str) -> Rules:
        """Return the rules without those of some outputs of every layer."""
        return replace(self, layer=tuple(rule for rule in self.layer if rule.output not in outputs))


class Layers(NamedTuple):
    """How many layers a file counts: the model's, and after them those that predict further tokens.

    `first` is the first that it holds: that after the model's in a file of prediction alone, which counts all the same.
    """

    ordinary: int
    predicting: int = 0
    first: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.ordinary + self.predicting

    @property
    def held(self) -> range:
        """Those that the file holds."""
        return range(self.first, self.total)


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
    rules         which tensors there are, and of what they are made
    layers_in     how many layers its files have unless they are to have others, given the names of the source tensors
    dimensions    the sizes that the rules name; "experts" is needed
    conditions    what holds for a layer (None: for the model), the words in `Rule.when`
    drops         what a file of this configuration does without, given the names of the source tensors
    metadata      the architecture's keys, for a file of so many layers
    warnings      sentences on what an engine will compute otherwise
    specials      special tokens that the family has under names of its own: a role (bos, unk, eot) and the token's text
    bos_first     what to call a model whose prompts begin with bos whatever the tokenizer's files say; "" for others
    light         the family as whose model it can be written with less, for engines that do not know this one
    apart         why multi-token prediction cannot be in one file with the model; "" where it can
    template      the chat template of checkpoints that bring none: a file in data/templates; "" for none
    unsaid        what a configuration means that does not state these keys
    fixed         types that llama.cpp's converter gives, whatever is asked of it, to matrices stored so ("FP8", "BF16")
                  or whose names end so; the first that holds counts
    """

    architecture: str
    classes: frozenset[str]
    rules: Rules
    layers_in: Callable[[Config, Container[str]], Layers]
    dimensions: Callable[[Config], Dimensions]
    conditions: Callable[[Config, int | None], frozenset[str]]
    drops: Callable[[Config, Container[str]], tuple[Drop, ...]]
    metadata: Callable[[Config, Layers], dict[str, Value]]
    warnings: Callable[[Config], list[str]] = lambda _config: []
    specials: Mapping[str, str] = field(default_factory=dict)
    bos_first: str = ""
    light: Family | None = None
    apart: str = ""
    template: str = ""
    unsaid: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)


def ordinary_layers(config: Config, _names: Container[str]) -> Layers:
    """Return the layers of a family whose files hold no others."""
    return Layers(config.positive("num_hidden_layers"))


def outputs(
    family: Family, config: Config, checkpoint: Checkpoint, layers: Layers
) -> tuple[list[Untyped], dict[str, str]]:
    """Return the outputs of a file of these layers in file order, and the dropped tensors with their reasons.

    InputError says which tensors are missing and which no rule knows; another names a wrong shape. Tensors of shards
    that are missing matter only where they are wanted.
    """
    dims, names = family.dimensions(config), checkpoint.names
    _check_counts(config, layers, dims, len(names))
    wanted = _stored(list(_instances(family, config, layers, dims)), names)
    needed = dict.fromkeys(source for instance in wanted for source in instance.sources)
    missing = [source for source in needed if source not in checkpoint.tensors]
    others = [name for name in (*checkpoint.tensors, *checkpoint.absent) if name not in needed]
    dropped, unknown = _sort_out(others, (*_before(family, layers), *family.drops(config, names)))
    if lost := [name for name in (*needed, *unknown) if name in checkpoint.absent]:
        raise checkpoint.incomplete(lost)
    if missing or unknown:
        raise _mismatch(family, config, checkpoint, missing, unknown)
    left_out = {name: reason for name, reason in dropped.items() if name not in checkpoint.absent}
    return [_output(instance, dims, checkpoint.tensors, checkpoint) for instance in wanted], left_out


def source_shapes(family: Family, config: Config, layers: Layers) -> dict[str, tuple[int, ...]]:
    """Return every source tensor that a model of this configuration has, with its shape, layer by layer."""
    dims = family.dimensions(config)
    return {
        source: tuple(dims[size] for size in instance.rule.shape)
        for instance in _instances(family, config, layers, dims)
        for source in instance.sources
    }


def _before(family: Family, layers: Layers) -> tuple[Drop, ...]:
    """Return what a file without the model's own layers does without."""
    if not layers.first:
        return ()
    numbers = "|".join(map(str, range(layers.first)))
    reason = "of the model's own layers, which are not in a file of multi-token prediction alone"
    ends = [re.escape(rule.source) for rule in family.rules.last if rule.when == WHOLE]
    return tuple(Drop(pattern, reason) for pattern in (rf"model\.layers\.({numbers})\..+", *ends))


def _check_counts(config: Config, layers: Layers, dims: Dimensions, stored: int) -> None:
    # Before lists of that length are built: each layer and each expert has a tensor at least.
    for key, count in (("num_hidden_layers", layers.total), ("n_routed_experts", dims["experts"])):
        if count > stored:
            raise config.refuse(key, f"at most {stored}, the number of tensors", count)


@dataclass(frozen=True)
class _Instance:
    rule: Rule
    output: str
    sources: tuple[str, ...]
    belongs_to: tuple[int | None, str]


def _instances(family: Family, config: Config, layers: Layers, dims: Dimensions) -> Iterator[_Instance]:
    rules, model = family.rules, family.conditions(config, None) | {ALONE if layers.first else WHOLE}
    for rule in rules.first:
        yield from _instance(rule, model, None, dims)
    for layer in layers.held:
        conditions = family.conditions(config, layer)
        for rule in rules.layer:
            yield from _instance(rule, conditions, layer, dims)
    for rule in rules.last:
        yield from _instance(rule, model, layers.first, dims)


def _stored(instances: list[_Instance], names: Container[str]) -> list[_Instance]:
    """Return the instances without those of optional things that are stored nowhere."""
    there = {one.belongs_to for one in instances if any(source in names for source in one.sources)}
    return [one for one in instances if not one.rule.optional or one.belongs_to in there]


def _instance(rule: Rule, conditions: frozenset[str], layer: int | None, dims: Dimensions) -> Iterator[_Instance]:
    if rule.when != "always" and rule.when not in conditions:
        return
    names = [name.replace("{layer}", str(layer)) for name in (rule.source, rule.beside) if name]
    around = [name.partition("{expert}") for name in names]
    experts: Iterable[int | str] = range(dims["experts"]) if around[0][1] else ("",)
    sources = tuple(f"{first}{expert}{rest}" for expert in experts for first, _, rest in around)
    yield _Instance(rule, rule.output.format(layer=layer), sources, (layer, rule.optional))


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


def _mismatch(
    family: Family, config: Config, checkpoint: Checkpoint, missing: list[str], unknown: list[str]
) -> InputError:
    lists = [
        f"{len(names)} tensor{'s' * (len(names) > 1)} {what}: {_outline(names)}"
        for what, names in (("missing", missing), ("that no rule uses or drops", unknown))
        if names
    ]
    return InputError(
        f"the weights are not those of a {family.architecture} model: {'; '.join(lists)}",
        file=checkpoint.folder.path,
        remedy=_way_on(config, missing, unknown),
    )


def _way_on(config: Config, missing: list[str], unknown: list[str]) -> str:
    if missing == [HEAD] and not unknown:
        return (
            f"{config.file.name} says that the output matrix is not the embeddings (tie_word_embeddings is false). If "
            "the model was saved without it because they are the same: --set tie_word_embeddings=true"
        )
    if missing and unknown:
        return "The names are those of another program or variant; save the model with save_pretrained of transformers"
    if missing:
        return f"All files are there, so the model was saved without these, or {config.file.name} is of another model"
    return "The configuration and the weights do not belong together, or this variant is not supported"


def _outline(names: list[str]) -> str:
    """Return all of a few names; of many the commonest patterns, numbers as N, and examples."""
    if len(names) <= LISTED:
        return ", ".join(names)
    patterns = Counter(_NUMBER.sub("N", name) for name in names)
    most = [f"{pattern} ({count} times)" for pattern, count in patterns.most_common(PATTERNS)]
    others = f" and {len(patterns) - PATTERNS} other patterns" if len(patterns) > PATTERNS else ""
    first = next(iter(names)).split(".")[0]
    begin = f"every name begins with {first!r}; " if all(name.startswith(first + ".") for name in names) else ""
    return f"{begin}{', '.join(most)}{others}; for example {', '.join(names[:EXAMPLES])}"


def _output(
    instance: _Instance, dims: Dimensions, tensors: Mapping[str, SourceTensor], checkpoint: Checkpoint
) -> Untyped:
    expected = tuple(dims[size] for size in instance.rule.shape)
    for source in instance.sources:
        if tensors[source].shape != expected:
            named = " x ".join(instance.rule.shape)
            raise InputError(
                "has the wrong shape",
                file=checkpoint.folder.path,
                tensor=source,
                expected=f"{list(expected)} ({named})",
                found=list(tensors[source].shape),
            )
    shape, parts = instance.rule.form(instance.sources, expected, dims)
    copied = {None if part.transposed else tensors[part.source].raw_type for part in parts}
    ggml_type = copied.pop() if len(copied) == 1 else None
    return Untyped(instance.output, shape, parts, tensors[instance.sources[0]].stored, ggml_type)
