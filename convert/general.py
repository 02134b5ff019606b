"""The `general.*` section of the metadata: name, version, size label, licence, base models, sampling defaults.

The heuristics are those of the `gguf` package (`gguf.Metadata`), which llama.cpp's converter uses: names of directories
and models are taken apart the same way and keys come out the same. What this adds is caution: a model card is written
by hand, so anything in it that GGUF cannot hold is left out with a warning, never a traceback.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
from dataclasses import dataclass
from datetime import date
from itertools import takewhile
from math import prod
from typing import TYPE_CHECKING, Any

import gguf
import gguf.metadata

from gguf_mla.container.values import Kind, Value, array
from gguf_mla.errors import InputError
from gguf_mla.files.bounds import CARD_BYTES, CONFIG_BYTES
from gguf_mla.files.readable import UTF8_MARK
from gguf_mla.sources import hub_cache

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gguf_mla.sources.folder import Folder

# Metadata's field ← generation_config.json's key. gguf 0.19 does not know `repetition_penalty`, newer versions do.
SAMPLING = {
    "sampling_sequence": ("sequence",),
    "sampling_top_k": ("top_k",),
    "sampling_top_p": ("top_p",),
    "sampling_min_p": ("min_p",),
    "sampling_xtc_probability": ("xtc_probability",),
    "sampling_xtc_threshold": ("xtc_threshold",),
    "sampling_temp": ("temperature",),
    "sampling_penalty_last_n": ("penalty_last_n",),
    "sampling_penalty_repeat": ("penalty_repeat", "repetition_penalty"),
    "sampling_mirostat": ("mirostat",),
    "sampling_mirostat_tau": ("mirostat_tau",),
    "sampling_mirostat_eta": ("mirostat_eta",),
}

# The entries of a card that may hold objects, and what a base model or data set may say about itself.
ORIGINS = ("base_model", "base_models", "base_model_sources", "dataset", "datasets", "dataset_sources")
ORIGIN_KEYS = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")
INTEGERS = {
    Kind.U8: (0, 2**8), Kind.I8: (-(2**7), 2**7), Kind.U16: (0, 2**16), Kind.I16: (-(2**15), 2**15),
    Kind.U32: (0, 2**32), Kind.I32: (-(2**31), 2**31), Kind.U64: (0, 2**64), Kind.I64: (-(2**63), 2**63),
}  # fmt: skip
LARGEST_FLOAT = 3e38  # about what 32 bits can hold
SHOWN = 8  # entries of a card that cannot be used, each with a warning of its own
CARD, GENERATION = "README.md", "generation_config.json"


@dataclass(frozen=True)
class Parameters:
    """Parameter counts of a model, as `gguf.size_label` takes them.

    total         all parameters
    shared        those outside expert tensors
    expert        those of one expert, over all layers and projections
    expert_count  experts per layer (the mean, rounded down), 0 without experts
    """

    total: int
    shared: int
    expert: int
    expert_count: int


def count_parameters(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> Parameters:
    """Count the parameters of a GGUF's tensors, given as name and numpy shape (rows first, experts before rows).

    Source: `GGUFWriter.get_total_parameter_count` of the gguf package, which gives the same numbers.
    """
    total = shared = expert = 0
    counts: list[int] = []
    for name, shape in tensors:
        size = prod(shape)
        total += size
        if "_exps." in name and len(shape) >= 3 and size:
            counts.append(shape[-2 if ".bias" in name else -3])
            expert += size // counts[-1]
        else:
            shared += size
    return Parameters(total, shared, expert, sum(counts) // len(counts) if counts else 0)


def general_metadata(
    folder: Folder, architecture: str, parameters: Parameters, stated: Mapping[str, Any] | None = None
) -> tuple[dict[str, Value], list[str]]:
    """Return the `general.*` metadata of a checkpoint in writing order, and warnings as sentences.

    Taken from README.md's front matter, config.json, generation_config.json and the name of the folder.
    `general.file_type` and `general.quantization_version` depend on the output and are not here. `stated` maps fields
    of `gguf.Metadata` to values that count instead.

    Raises InputError when config.json is not a JSON object; everything else that is unsound is left out with a warning.
    """
    warnings: list[str] = []
    place, names = hub_cache.directory(folder.path), frozenset(folder.names())
    card = _model_card(folder, warnings) if CARD in names else {}
    config = folder.json("config.json", CONFIG_BYTES) if "config.json" in names else {}
    config = _config(config, hub_cache.repository(folder.path))
    with _logged("metadata", warnings):
        found = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, config, place, parameters.total)
    _set_sampling(found, _generation(folder, warnings) if GENERATION in names else {})
    for name, value in (stated or {}).items():
        setattr(found, name, value)
    found.name = found.name or place.name or "model"
    if found.size_label is None and parameters.total > 0:
        counts = (parameters.total, parameters.shared, parameters.expert, parameters.expert_count)
        found.size_label = gguf.size_label(*counts)
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    found.set_gguf_meta_model(writer)
    return _values(writer.kv_data[0], warnings), warnings


def _config(config: dict[str, Any], cached: tuple[str, str] | None) -> dict[str, Any]:
    """Return config.json as the heuristics need it: the model's name in it, or the one a hub cache keeps it under."""
    name = config.get("_name_or_path")
    if not isinstance(name, str):
        config.pop("_name_or_path", None)
    if cached and not name:
        config["_name_or_path"] = "/".join(cached)
    return config


def _model_card(folder: Folder, warnings: list[str]) -> dict[str, Any]:
    """Return the front matter of README.md, read as gguf reads it."""
    yaml = gguf.metadata.yaml
    try:
        text = _front_matter(_beginning(folder, CARD))
        # "no" in a list is Norwegian, not false; and YAML indents by spaces alone.
        card = yaml.load(text.replace("- no\n", '- "no"\n').replace("\t", "  "), _safe_loader(yaml)) if text else {}
    except (yaml.YAMLError, InputError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())[:200]
        warnings.append(f"README.md: the model card cannot be read ({line}); it is left out.")
        return {}
    if not isinstance(card, dict):
        warnings.append(
            f"README.md: the front matter is of type {type(card).__name__} instead of dict; it is left out."
        )
        return {}
    found: list[str] = []
    plain = {key: plain for key, value in card.items() if (plain := _plain(key, value, found)) is not None}
    more = [f"README.md: {len(found) - SHOWN} more such entries are left out."] if len(found) > SHOWN else []
    warnings += found[:SHOWN] + more
    return plain


def _safe_loader(yaml: Any) -> Any:
    """Return the loader that makes plain data only, the one written in C where PyYAML has it: ten times as fast."""
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _beginning(folder: Folder, name: str) -> str:
    """Return the part of a text in which a front matter lies; ValueError where that is longer, or is not UTF-8."""
    file = folder.open(name)
    data = file.read(0, min(file.size, CARD_BYTES)).tobytes().removeprefix(UTF8_MARK)
    text = codecs.getincrementaldecoder("utf-8")().decode(data, final=file.size <= CARD_BYTES)
    if file.size > CARD_BYTES and text.startswith("---") and "---" not in text.splitlines()[1:]:
        raise ValueError("its front matter is longer than any")
    return text


def _front_matter(text: str) -> str:
    """Return the lines between a first and a next line of ---, "" where the text does not begin so."""
    first, *rest = text.splitlines() or [""]
    return "\n".join(takewhile(lambda line: line != "---", rest)) + "\n" if first == "---" else ""


def _plain(key: object, value: Any, warnings: list[str]) -> Any:
    """Return a card's entry with scalars as text, None where there is none; only the depth that cards have is read."""
    if value is None:
        return None
    items = value if isinstance(value, list) else [value]
    kept = [plain for item in items if (plain := _text(item) or (key in ORIGINS and _origin(item)))]
    if len(kept) < len(items):
        warnings.append(f"README.md: {key!s:.40} holds something that is not text; that part is left out.")
    if not kept:
        return None
    return kept if isinstance(value, list) else kept[0]


def _text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float | date):
        return None
    return str(value)


def _origin(value: Any) -> dict[str, str]:
    found = {key: _text(value.get(key)) for key in ORIGIN_KEYS} if isinstance(value, dict) else {}
    return {key: text for key, text in found.items() if text is not None}


def _generation(folder: Folder, warnings: list[str]) -> dict[str, Any]:
    try:
        return folder.json(GENERATION, CONFIG_BYTES)
    except InputError as error:
        warnings.append(f"{error} Its sampling defaults are left out.")
        return {}


def _set_sampling(found: Any, generation: dict[str, Any]) -> None:
    for name, keys in SAMPLING.items():
        stated = [generation[key] for key in keys if generation.get(key) is not None]
        if stated:
            setattr(found, name, stated[0])


def _values(pairs: dict[str, Any], warnings: list[str]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for key, pair in pairs.items():
        value = _value(Kind(int(pair.type)), pair.value)
        if value is None:
            warnings.append(f"{key} cannot be {pair.value!r:.60}; it is left out.")
        else:
            values[key] = value
    return values


def _value(kind: Kind, data: Any) -> Value | None:
    """Return one value of its GGUF type, None when the content does not fit that type."""
    if kind == Kind.ARRAY:
        return array(Kind.STRING, data) if data and all(_is_text(item) for item in data) else None
    if kind == Kind.STRING:
        return Value(kind, data) if _is_text(data) else None
    low, high = INTEGERS.get(kind, (-LARGEST_FLOAT, LARGEST_FLOAT))
    if isinstance(data, bool) or not isinstance(data, int | float) or not low <= data <= high:
        return None
    if kind in INTEGERS:
        return Value(kind, int(data)) if data == int(data) and data < high else None
    return Value(kind, float(data))


def _is_text(data: Any) -> bool:
    try:
        return isinstance(data, str) and bool(data.encode() or True)
    except UnicodeEncodeError:
        return False


@contextlib.contextmanager
def _logged(name: str, warnings: list[str]) -> Iterator[None]:
    """Turn what a library logs as an error into warnings instead of lines on stderr."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(f"README.md: {record.getMessage()}.")  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
