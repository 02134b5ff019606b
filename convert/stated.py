"""What the user says of a model, which counts instead of what the checkpoint says: its name, authorship, metadata."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import gguf

from gguf_mla.errors import InputError
from gguf_mla.files import json_text
from gguf_mla.files.bounds import CONFIG_BYTES
from gguf_mla.files.input import read_small

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

GENERAL = "general."
LISTS = {"tags", "languages"}
ORIGINS = {"base_models", "datasets"}  # lists of objects
TEXT_SAMPLING = "sampling_sequence"


@dataclass(frozen=True)
class Stated:
    """What the user says.

    general   fields of `gguf.Metadata` with their values
    settings  `KEY=TYPE:VALUE` for any metadata, applied last
    files     that this was read from
    """

    general: Mapping[str, Any] = field(default_factory=dict)
    settings: Sequence[str] = ()
    files: Sequence[Path] = ()

    @classmethod
    def read(cls, model_name: str | None, metadata: Path | None, settings: Sequence[str]) -> Self:
        """Take a name, a JSON file as llama.cpp's converter takes it, and settings; InputError for an unsound file."""
        general = _general(metadata) if metadata else {}
        named = {} if model_name is None else {"name": model_name}
        return cls(general | named, settings, (metadata,) if metadata else ())


def _general(file: Path) -> dict[str, Any]:
    """Return the fields of a JSON object {"general.author": "...", "general.sampling.top_k": 40}."""
    try:
        content = json_text.parse(read_small(file, CONFIG_BYTES), json_text.unique)
    except ValueError as error:
        raise InputError(f"is not sound JSON ({error})", file=file, remedy="Repair it") from None
    if not isinstance(content, dict):
        raise InputError("holds no metadata", file=file, expected="a JSON object", found=type(content).__name__)
    known = {entry.name for entry in dataclasses.fields(gguf.Metadata)}
    found = {}
    for key, value in content.items():
        name = key.removeprefix(GENERAL).replace(".", "_")
        if not key.startswith(GENERAL) or name not in known:
            remedy = "Set any other key with --override-kv"
            raise InputError("is not a key that --metadata sets", file=file, found=key, remedy=remedy)
        _check(key, name, value, file)
        found[name] = value
    return found


def _check(key: str, name: str, value: Any, file: Path) -> None:
    if name in LISTS | ORIGINS:
        fits = isinstance(value, list) and all(_is_origin(v) if name in ORIGINS else isinstance(v, str) for v in value)
        words = "a list of objects whose values are texts" if name in ORIGINS else "a list of texts"
    elif name.startswith("sampling_") and name != TEXT_SAMPLING:
        fits, words = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    else:
        fits, words = isinstance(value, str), "a text"
    if not fits:
        raise InputError(f"{key} cannot have this value", file=file, expected=words, found=repr(value))


def _is_origin(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
