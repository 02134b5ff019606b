"""How large the key-value cache is, for `gguf-mla inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import units
from gguf_mla.cli.table import table
from gguf_mla.errors import InputError
from gguf_mla.layout import compressed_cache
from gguf_mla.layout.cache import EXPANDED, K_ONLY, WITH_V, Cache, caches
from gguf_mla.layout.detect import attention_layout
from gguf_mla.layout.heads import MLA_KEY, count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gguf_mla.container.reader import GgufFile
    from gguf_mla.layout.compressed_cache import Part

THIS = "this file"


def records(file: GgufFile, context: int | None, fit: str | None, sequences: int) -> list[dict[str, Any]]:
    """Return JSON-ready records, one for each layout of the cache and type.

    context    tokens of each sequence: gives bytes per layer and in all
    fit        memory for weights and cache, like "80G": gives the longest context; working memory is not counted
    sequences  how many are cached at the same time

    InputError for a model without multi-head latent attention, and for weights that do not fit.
    """
    if compressed_cache.is_compressed(file):
        room = None if fit is None else _room(file, units.parse_size(fit))
        found = compressed_cache.parts_by_type(file).items()
        return [record for kind, parts in found for record in _of_parts(kind, parts, file, context, room, sequences)]
    return _of_rows(file, context, fit, sequences)


def _of_rows(file: GgufFile, context: int | None, fit: str | None, sequences: int) -> list[dict[str, Any]]:
    found = caches(file)
    if not found:
        raise InputError("is not a model with multi-head latent attention, so its cache is not known", file=file.path)
    if found[0].layers < 1:
        raise InputError("has no layers to cache", file=file.path, expected="1 or more", found=found[0].layers)
    room = None if fit is None else _room(file, units.parse_size(fit))
    return [_record(cache, file, found, context, room, sequences) for cache in found]


def _of_parts(
    kind: str, parts: Sequence[Part], file: GgufFile, context: int | None, room: int | None, sequences: int
) -> Iterator[dict[str, Any]]:
    """Yield a record of all parts of a compressed cache, and one of each; `kind` is the type of what grows."""
    fits: dict[str, Any] = {}
    if room is not None:
        fits = {"longest_context": compressed_cache.longest(parts, room // sequences), "model_context": _trained(file)}
    for name, some in (("all of it", parts), *((part.name, [part]) for part in parts)):
        record = {
            "cache": name,
            "use": THIS,
            "type": kind if len(some) > 1 else some[0].type,
            "values": sum(part.values for part in some),
            "layers": max(part.layers for part in some),
            "bytes_per_token": round(sum(part.token_bytes for part in some)),
        }
        if context is not None:
            record["bytes"] = sequences * compressed_cache.total(some, context)
        yield record | fits


def _room(file: GgufFile, memory: int) -> int:
    weights = _weights(file)
    if weights > memory:
        raise InputError(
            "the weights alone do not fit", file=file.path, expected=f"at most {memory} bytes", found=weights
        )
    return memory - weights


def _weights(file: GgufFile) -> int:
    return sum(tensor.nbytes for tensor in file.tensors.values())


def _record(
    cache: Cache, file: GgufFile, all_caches: Sequence[Cache], context: int | None, room: int | None, sequences: int
) -> dict[str, Any]:
    record = {
        "cache": cache.name,
        "use": _use(cache, file),
        "type": cache.type,
        "values": sum(cache.rows),
        "layers": cache.layers,
        "bytes_per_token": cache.token_bytes,
    }
    if context is not None:
        tokens = context * sequences
        record |= {"bytes_per_layer": tokens * cache.layer_bytes, "bytes": tokens * cache.token_bytes}
        record |= {"saved": _saved(cache, all_caches)}
    if room is not None:
        record |= {"longest_context": room // (cache.token_bytes * sequences), "model_context": _trained(file)}
    return record


def _trained(file: GgufFile) -> int | None:
    """Return for how many tokens the model was made; None where the file does not say."""
    stated = file.metadata.get(f"{file.metadata.get('general.architecture')}.context_length")
    return stated if type(stated) is int and stated > 0 else None


def _use(cache: Cache, file: GgufFile) -> str:
    """Return what has such a cache: the file as it is, or what becomes of it, in engines of today or older ones."""
    architecture = file.metadata.get("general.architecture")
    is_legacy = f"{architecture}.{MLA_KEY}" not in file.values and attention_layout(file.tensors) in ("legacy", "none")
    if cache.name == EXPANDED:
        return THIS if is_legacy else "after a downgrade"
    mla = "after an upgrade" if is_legacy else THIS
    if cache.name == WITH_V:
        return f"{mla}, older engines"
    has_indexer = count(file, "attention.indexer.key_length", 0) > 0
    return f"{mla}, as a dense model" if cache.name == K_ONLY and has_indexer else mla


def _saved(cache: Cache, all_caches: Sequence[Cache]) -> float | None:
    """Return which part of the cache a view in the place of V saves."""
    if cache.name != K_ONLY:
        return None
    with_v = next(other for other in all_caches if other.name == WITH_V and other.type == cache.type)
    return 1 - cache.token_bytes / with_v.token_bytes


_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "cache": ("cache", str),
    "use": ("of", str),
    "type": ("type", str),
    "layers": ("layers", str),
    "values": ("values", str),
    "bytes_per_token": ("per token", units.size),
    "bytes_per_layer": ("per layer", units.size),
    "bytes": ("in all layers", units.size),
    "saved": ("less than with V", lambda part: "" if part is None else f"{100 * part:.1f} %"),
    "longest": ("longest context", str),
}


def text(records: Sequence[dict[str, Any]], file: GgufFile, fit: str | None) -> str:
    """Return the same as a table, and what it does not count; `values` are those of a token in one layer."""
    rows = [record | {"longest": _longest(record)} if fit else record for record in records]
    alike = len({row["layers"] for row in rows}) == 1  # then the line above the table says how many
    shown = [(key, *_COLUMNS[key]) for key in _COLUMNS if key in rows[0] and not (key == "layers" and alike)]
    header = [title for _, title, _ in shown]
    lines = table(header, [[form(row[key]) for key, _, form in shown] for row in rows], right=",".join(header[3:]))
    weights = units.size(_weights(file))
    beside = f"beside weights of {weights}" if fit else f"weights of {weights} come on top"
    return f"{records[0]['layers']} layers\n\n{lines}\n\n{beside}; an engine's working memory is not counted"


def _longest(record: dict[str, Any]) -> str:
    """Return the longest context, no longer than the model's own."""
    fits, own = record["longest_context"], record["model_context"]
    if own is None:
        return str(fits)
    return f"all of {own}" if fits >= own else f"{fits} of {own}"
