"""A Hugging Face checkpoint: configuration and tensors, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError
from gguf_mla.files.bounds import CONFIG_BYTES, SHARDS, named
from gguf_mla.sources.folder import Folder, open_folder
from gguf_mla.sources.formats import format_of
from gguf_mla.sources.safetensors import StoredTensor, read_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gguf_mla.sources.folder import Readable
    from gguf_mla.sources.tensor import SourceTensor

    Remarks = Callable[[Iterable[Any]], list[str]]

TEXT_MODEL = "language_model."  # before the names of text tensors in a model that has others, too
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def no_remarks(_found: Iterable[Any]) -> list[str]:
    """Return no sentence: reading most formats tells nothing."""
    return []


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint.

    `folder` is where its files lie, `config` is config.json, `tensors` maps a name to a SourceTensor, `files` are those
    the tensors lie in, `remarks` turns what reading them has shown (see Raw) into sentences, `notes` are sentences on
    what was left out. Of a model that is more than its text model, `config` is that of the text model but for
    `architectures`, and the tensors of the text model have the names that they would have alone.
    """

    folder: Folder
    config: Mapping[str, Any]
    tensors: Mapping[str, SourceTensor]
    files: tuple[Readable, ...]
    remarks: Remarks = no_remarks
    notes: tuple[str, ...] = ()


def open_checkpoint(source: Folder | Path | str) -> Checkpoint:
    """Read the configuration and all shard headers of a checkpoint; InputError for an unsound one.

    `source` is its directory, or whatever else its files lie in.
    """
    folder = source if isinstance(source, Folder) else open_folder(source)
    config = _text_config(folder.json("config.json", CONFIG_BYTES))
    quantization = config.get("quantization_config") or {}
    source_format = format_of(quantization, folder.path / "config.json")
    shards = _shards(folder)
    files = {name: folder.open(name) for name in shards}
    stored = _stored(files, shards, folder.path / INDEX)
    tensors = _unwrapped(source_format.tensors(stored), folder.path)
    return Checkpoint(folder, config, tensors, tuple(files.values()), source_format.remarks, source_format.notes)


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    if not isinstance(text, dict):
        return config
    outer = {key: config[key] for key in ("architectures", "quantization_config") if config.get(key)}
    return text | outer


def _unwrapped(tensors: Mapping[str, SourceTensor], place: PurePath) -> Mapping[str, SourceTensor]:
    found = {name.removeprefix(TEXT_MODEL): tensor for name, tensor in tensors.items()}
    if len(found) != len(tensors):
        twice = next(name for name in tensors if TEXT_MODEL + name in tensors)
        raise InputError(
            f"is also there as {TEXT_MODEL}{twice}", file=place, tensor=twice, expected="one copy", found="two"
        )
    return found


def _shards(folder: Folder) -> dict[str, list[str]]:
    """Return the name of every shard with the tensors that the index expects in it."""
    names = folder.names()
    if INDEX in names:
        return _indexed(folder, names)
    if SINGLE in names:
        return {SINGLE: []}
    raise _no_shards(folder, names)


def _no_shards(folder: Folder, names: list[str]) -> InputError:
    others = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    if others:
        return InputError(
            "the index of the shards is missing",
            file=folder.path / INDEX,
            found=f"{len(others)} .safetensors files and no index",
            expected=f"{INDEX} or {SINGLE}",
        )
    if pickles:
        return InputError(
            "the checkpoint exists only in the pickle format, which can run code and is never loaded",
            file=folder.path / pickles[0],
            remedy="Download the safetensors version, or save the model again with safe_serialization",
        )
    expected = f"{INDEX} or {SINGLE}"
    return InputError("there are no weights in the directory", file=folder.path, expected=expected, found="neither")


def _indexed(folder: Folder, present: list[str]) -> dict[str, list[str]]:
    index = folder.path / INDEX
    weight_map = folder.json(INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        found = type(weight_map).__name__
        raise InputError("has no weight_map", file=index, expected="an object from tensor to shard", found=found)
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or (shard not in shards and not _is_plain_name(shard)):
            raise InputError(
                "names a shard outside the directory",
                file=index,
                tensor=name,
                expected="a plain file name",
                found=repr(shard),
            )
        shards.setdefault(shard, []).append(name)
        if len(shards) > SHARDS:
            raise InputError("names more shards than any model has", file=index, expected=f"at most {SHARDS}")
    if missing := sorted(set(shards).difference(present)):
        what = f"{len(missing)} of {len(shards)} shards are missing: {named(missing)}"
        raise InputError(what, file=folder.path, remedy="Download them")
    return dict(sorted(shards.items()))


def _is_plain_name(shard: str) -> bool:
    return "/" not in shard and "\\" not in shard and shard not in {".", ".."}


def _stored(files: Mapping[str, Readable], shards: Mapping[str, list[str]], index: PurePath) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for shard, file in files.items():
        found = read_shard(file)
        absent = next((name for name in shards[shard] if name not in found), None)
        if absent is not None:
            raise InputError(
                "the index places it in a shard that does not hold it",
                file=file.name,
                tensor=absent,
                remedy="The shard and the index belong to different versions, download both again",
            )
        twice = next((name for name in found if name in stored), None)
        if twice is not None:
            raise InputError(
                f"is also in {PurePath(stored[twice].file.name).name}",
                file=file.name,
                tensor=twice,
                expected="one copy",
                found="two",
                remedy=f"Check {index}",
            )
        stored.update(found)
    return stored
