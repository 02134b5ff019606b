"""A checkpoint between its files and its format: what the recognisers see, and what they hand on."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError
from gguf_mla.files.bounds import named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import PurePath

    from gguf_mla.sources.folder import Folder
    from gguf_mla.sources.safetensors import StoredTensor

EXAMPLES = 5  # names that a sentence shows
FLOATS = ("BF16", "F16", "F32", "F64")  # what weights are stored in that nothing has quantized
_NUMBER = re.compile(r"\.\d+(?=\.)")  # of a layer or an expert


@dataclass(frozen=True)
class Choices:
    """What the user decides where a checkpoint can be read in more than one way.

    weights   a pattern of file names: the .safetensors files that hold the weights, whatever an index says
    prefix    what the names of the wanted language model's tensors begin with
    settings  keys of config.json with values that count instead of what is there; "a.b" is b in the object a
    """

    weights: str | None = None
    prefix: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What is known of a checkpoint so far.

    config   config.json; of a model that is more than its text model, that of the text model
    stored   the tensors by the names that they are taken for
    absent   tensors that the index places in a shard which is missing or does not hold them: name to shard
    dropped  tensors that no model needs, with the reason
    notes    sentences on what was recognised
    """

    folder: Folder
    config: Mapping[str, Any]
    stored: Mapping[str, StoredTensor]
    absent: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    choices: Choices = field(default_factory=Choices)

    @property
    def config_file(self) -> PurePath:
        """Where config.json lies."""
        return self.folder.path / "config.json"

    @functools.cached_property
    def kinds(self) -> frozenset[str]:
        """The names of all tensors with every number between dots as 0: some fifty, where there are 200,000 names."""
        return frozenset(_NUMBER.sub(".0", "\n".join((*self.stored, *self.absent))).split("\n"))

    def named(self, pattern: re.Pattern[str]) -> list[str]:
        """Return the names of stored tensors that a pattern is found in; it must not tell one number from another."""
        if not any(map(pattern.search, self.kinds)):
            return []
        return [name for name in self.stored if pattern.search(name)]

    def noted(self, sentence: str) -> Reading:
        """Return the reading with one more note."""
        return replace(self, notes=(*self.notes, sentence))

    def configured(self, **values: Any) -> Reading:
        """Return the reading with other values for some keys of the configuration."""
        return replace(self, config={**self.config, **values})

    def without(self, reasons: Mapping[str, str]) -> Reading:
        """Return the reading without the tensors that `reasons` names, which are dropped for these reasons."""
        if not reasons:
            return self
        stored = {name: tensor for name, tensor in self.stored.items() if name not in reasons}
        absent = {name: shard for name, shard in self.absent.items() if name not in reasons}
        there = {name: reason for name, reason in reasons.items() if name in self.stored}
        return replace(self, stored=stored, absent=absent, dropped={**self.dropped, **there})

    def renamed(self, rename: Callable[[str], str]) -> Reading:
        """Return the reading with other names; InputError where two tensors would have the same."""
        names = {name: rename(name) for name in (*self.stored, *self.absent)}
        if len({*names.values()}) != len(names):
            raise self._twice(names)
        stored = {names[name]: tensor.called(names[name]) for name, tensor in self.stored.items()}
        absent = {names[name]: shard for name, shard in self.absent.items()}
        return replace(self, stored=stored, absent=absent)

    def _twice(self, names: Mapping[str, str]) -> InputError:
        owners: dict[str, str] = {}
        name = next(name for name, new in names.items() if owners.setdefault(new, name) != name)
        what = f"is also there as {owners[names[name]]}"
        return InputError(what, file=self.folder.path, tensor=name, expected="one copy", found="two")


def examples(names: Iterable[str]) -> str:
    """Return the first of some names, and how many more there are."""
    return named(names, EXAMPLES)
