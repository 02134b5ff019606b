"""A Hugging Face checkpoint directory: configuration and tensors, checked before anything is read.

A source format is one module of this package with `QUANT_METHOD` (the value of quantization_config.quant_method it
answers to), `tensors(stored, quantization)` and, if reading tells something of interest, `remarks(found)`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError
from gguf_mla.sources import formats
from gguf_mla.sources.folder import read_json
from gguf_mla.sources.safetensors import StoredTensor, read_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType

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

    `config` is config.json, `tensors` maps a name to a SourceTensor, `remarks` turns what reading them has shown (see
    Raw) into sentences. Of a model that is more than its text model, `config` is that of the text model but for
    `architectures`, and the tensors of the text model have the names that they would have alone.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, SourceTensor]
    files: tuple[Path, ...]
    remarks: Remarks = no_remarks


def open_checkpoint(directory: Path | str) -> Checkpoint:
    """Read the configuration and all shard headers of a checkpoint; InputError for an unsound one."""
    directory = Path(directory)
    if not directory.is_dir():
        what = "is a file; a checkpoint is the directory with config.json" if directory.exists() else "does not exist"
        raise InputError(
            what, file=directory, remedy="Name the directory that holds config.json and the .safetensors shards"
        )
    config = _text_config(read_json(directory / "config.json"))
    quantization = config.get("quantization_config") or {}
    source_format = _format(quantization, directory)
    shards = _shards(directory)
    found = source_format.tensors(_stored(directory, shards), quantization)
    tensors = _unwrapped(found, directory)
    remarks = getattr(source_format, "remarks", no_remarks)
    return Checkpoint(directory, config, tensors, tuple(shards), remarks)


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    if not isinstance(text, dict):
        return config
    outer = {key: config[key] for key in ("architectures", "quantization_config") if config.get(key)}
    return text | outer


def _unwrapped(tensors: Mapping[str, SourceTensor], directory: Path) -> Mapping[str, SourceTensor]:
    found = {name.removeprefix(TEXT_MODEL): tensor for name, tensor in tensors.items()}
    if len(found) != len(tensors):
        twice = next(name for name in tensors if TEXT_MODEL + name in tensors)
        raise InputError(
            f"is also there as {TEXT_MODEL}{twice}", file=directory, tensor=twice, expected="one copy", found="two"
        )
    return found


def _format(quantization: Any, directory: Path) -> ModuleType:
    method = quantization.get("quant_method") if isinstance(quantization, dict) else repr(quantization)
    formats = _formats()
    if not isinstance(method, str | None) or method not in formats:
        known = ", ".join(sorted(name for name in formats if name))
        raise InputError(
            "quantization_config.quant_method names a method that cannot be read",
            file=directory / "config.json",
            expected=f"{known}, or no quantization",
            found=method,
            remedy="Convert from the original checkpoint, or one saved in BF16",
        )
    return formats[method]


def _formats() -> dict[str | None, ModuleType]:
    modules = (
        importlib.import_module(f"{formats.__name__}.{info.name}")
        for info in pkgutil.iter_modules(formats.__path__)
        if info.name != "kernels"
    )
    return {module.QUANT_METHOD: module for module in modules if hasattr(module, "QUANT_METHOD")}


def _shards(directory: Path) -> dict[Path, list[str]]:
    """Return every shard with the tensors that the index expects in it."""
    if (directory / INDEX).is_file():
        return _indexed(directory)
    if (directory / SINGLE).is_file():
        return {directory / SINGLE: []}
    others = sorted(directory.glob("*.safetensors"))
    if others:
        raise InputError(
            "the index of the shards is missing",
            file=directory / INDEX,
            found=f"{len(others)} .safetensors files and no index",
            expected=f"{INDEX} or {SINGLE}",
        )
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickles:
        raise InputError(
            "the checkpoint exists only in the pickle format, which can run code and is never loaded",
            file=directory / pickles[0],
            remedy="Download the safetensors version, or save the model again with safe_serialization",
        )
    raise InputError(
        "there are no weights in the directory", file=directory, expected=f"{INDEX} or {SINGLE}", found="neither"
    )


def _indexed(directory: Path) -> dict[Path, list[str]]:
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(
            "has no weight_map",
            file=directory / INDEX,
            expected="an object from tensor to shard",
            found=type(weight_map).__name__,
        )
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or (shard not in shards and not _is_plain_name(shard)):
            raise InputError(
                "names a shard outside the directory",
                file=directory / INDEX,
                tensor=name,
                expected="a plain file name",
                found=repr(shard),
            )
        shards.setdefault(shard, []).append(name)
    present = {path.name for path in directory.iterdir() if path.is_file()}
    missing = sorted(shard for shard in shards if shard not in present)
    if missing:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise InputError(
            f"{len(missing)} of {len(shards)} shards are missing: {shown}", file=directory, remedy="Download them"
        )
    return {directory / shard: names for shard, names in sorted(shards.items())}


def _is_plain_name(shard: str) -> bool:
    return PurePosixPath(shard).name == shard and "\\" not in shard and shard != ".."


def _stored(directory: Path, shards: Mapping[Path, list[str]]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for path, expected in shards.items():
        found = read_shard(path)
        absent = next((name for name in expected if name not in found), None)
        if absent is not None:
            raise InputError(
                "the index places it in a shard that does not hold it",
                file=path,
                tensor=absent,
                remedy="The shard and the index belong to different versions, download both again",
            )
        twice = next((name for name in found if name in stored), None)
        if twice is not None:
            raise InputError(
                f"is also in {stored[twice].file.path.name}",
                file=path,
                tensor=twice,
                expected="one copy",
                found="two",
                remedy=f"Check {directory / INDEX}",
            )
        stored.update(found)
    return stored
