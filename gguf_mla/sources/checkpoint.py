"""A Hugging Face checkpoint: configuration and tensors, checked before anything is read."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError
from gguf_mla.files.bounds import CONFIG_BYTES, named
from gguf_mla.sources.folder import Folder, open_folder
from gguf_mla.sources.formats import format_of
from gguf_mla.sources.recognise import adapter, other_forms, recognised
from gguf_mla.sources.recognise.merged import merge
from gguf_mla.sources.recognise.reading import Choices, Reading, examples
from gguf_mla.sources.recognise.settings import changed
from gguf_mla.sources.recognise.shards import INDEX, find
from gguf_mla.sources.safetensors import read_shard
from gguf_mla.sources.side_by_side import joined, whole_name
from gguf_mla.sources.views import view

__all__ = ["INDEX", "Checkpoint", "Choices", "open_checkpoint", "open_partial"]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from gguf_mla.container.view import Tensor
    from gguf_mla.files.readable import AnyPath
    from gguf_mla.sources.folder import Readable
    from gguf_mla.sources.tensor import SourceTensor

    Remarks = Callable[[Iterable[Any]], list[str]]


def no_remarks(_found: Iterable[Any]) -> list[str]:
    """Return no sentence: reading most formats tells nothing."""
    return []


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint.

    `folder` is where its files lie, `config` is config.json, `tensors` maps a name to a SourceTensor, `files` are those
    the tensors lie in, `remarks` turns what reading them has shown (see Raw) into sentences. Of a model that is more
    than its text model, `config` is that of the text model but for `architectures`, and the tensors of the text model
    have the names that they would have alone.

    `notes` are sentences on what other tools have left and how it was read, `dropped` the tensors that no model needs
    with the reason, `absent` the tensors that the index places in a shard that is missing or does not hold them.
    """

    folder: Folder
    config: Mapping[str, Any]
    tensors: Mapping[str, SourceTensor]
    files: tuple[Readable, ...]
    remarks: Remarks = no_remarks
    notes: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors that the checkpoint has, were it complete."""
        return frozenset(self.tensors) | frozenset(self.absent)

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor to read numbers or bytes of; KeyError if there is none of that name."""
        return view(self.tensors[name])

    def __repr__(self) -> str:
        kind = ", ".join(map(str, self.config.get("architectures") or ["no architecture"]))
        return f"<Checkpoint {self.folder.path.name}: {kind}, {len(self.tensors)} tensors in {len(self.files)} files>"

    def incomplete(self, wanted: Iterable[str]) -> InputError:
        """Return the error for tensors that are wanted and absent."""
        return _incomplete(self.folder, {name: self.absent[name] for name in wanted}, frozenset(self.absent.values()))


def open_checkpoint(source: Folder | AnyPath | str, choices: Choices | None = None) -> Checkpoint:
    """Read the configuration and all shard headers of a checkpoint; InputError for an unsound one.

    `source` is its directory, or whatever else its files lie in; `choices` decide where there are two readings.
    """
    checkpoint = open_partial(source, choices)
    if checkpoint.absent:
        raise checkpoint.incomplete(checkpoint.absent)
    return checkpoint


@contextlib.contextmanager
def _nothing_to_collect() -> Iterator[None]:
    """Keep Python from looking through hundreds of thousands of new objects for garbage, which takes a quarter more."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_nothing_to_collect()
def open_partial(source: Folder | AnyPath | str, choices: Choices | None = None) -> Checkpoint:
    """Open a checkpoint of which shards may be missing, as `open_checkpoint`; `absent` then names their tensors."""
    folder = source if isinstance(source, Folder) else open_folder(source)
    choices = choices or Choices()
    names = folder.names()
    adapter.check(folder, names)
    other_forms.check(folder, names)
    config = _text_config(folder.json("config.json", CONFIG_BYTES))
    if not isinstance(stated := config.get("quantization_config") or {}, dict):
        format_of(stated, folder.path / "config.json")  # which says that nothing reads it
    found = find(folder, names, choices.weights)
    if not found.files:
        raise _incomplete(folder, found.placed, frozenset(found.placed.values()))
    files = {name: folder.open(name) for name in found.files}
    stored, absent, copies = merge({name: read_shard(file) for name, file in files.items()}, found.placed)
    notes = (*found.notes, *copies)
    reading = recognised(
        Reading(folder, changed(config, choices.settings), stored, absent, notes=notes, choices=choices)
    )
    return _formatted(reading, tuple(files.values()))


def _formatted(reading: Reading, files: tuple[Readable, ...]) -> Checkpoint:
    """Return the checkpoint of a reading, its tensors decoded by the format that they are stored in."""
    quantization = reading.config.get("quantization_config") or {}
    try:
        source_format = format_of(quantization, reading.config_file)
        tensors = joined(source_format.tensors(reading.stored))
    except InputError:
        if reading.absent:  # a part of a weight may lie in a shard that is missing
            raise _incomplete(reading.folder, reading.absent, frozenset(reading.absent.values())) from None
        raise
    notes = (*reading.notes, *source_format.notes)
    absent = {whole_name(name): shard for name, shard in reading.absent.items()}
    return Checkpoint(
        reading.folder, reading.config, tensors, files, source_format.remarks, notes, reading.dropped, absent
    )


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    if not isinstance(text, dict):
        return config
    outer = {key: config[key] for key in ("architectures", "quantization_config") if config.get(key)}
    return text | outer


def _incomplete(folder: Folder, absent: Mapping[str, str], shards: frozenset[str]) -> InputError:
    """Return the error for tensors that the index places in vain; `shards` are all that it does so with."""
    missing = sorted(shards.difference(_there(folder, shards)))
    if missing:
        what = f"shards are missing: {named(missing)}"
        found = f"{len(absent)} tensors of the index lie nowhere: {examples(absent)}"
        return InputError(what, file=folder.path, found=found, remedy="Download them")
    name, shard = next(iter(absent.items()))
    others = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    return InputError(
        f"the index places it{others} in a shard that does not hold it",
        file=folder.path / shard,
        tensor=name,
        remedy=f"The shards and {INDEX} belong to different versions: take both from the same one. Complete numbered "
        "shards are read without an index",
    )


def _there(folder: Folder, shards: Iterable[str]) -> set[str]:
    unders = {shard.rpartition("/")[0] for shard in shards if "\0" not in shard}
    return {name for under in ("", *unders) for name in folder.names(under)}
