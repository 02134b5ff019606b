"""How large the key-value cache is, for `gguf-mla inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import units
from gguf_mla.cli.table import table
from gguf_mla.errors import InputError
from gguf_mla.layout.cache import K_ONLY, WITH_V, Cache, caches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gguf_mla.container.reader import GgufFile

MIB = 1 << 20


def records(file: GgufFile, context: int | None, fit: str | None, sequences: int) -> list[dict[str, Any]]:
    """Return JSON-ready records, one for each layout of the cache and type.

    context    tokens of each sequence: gives bytes per layer and in all
    fit        memory for weights and cache, like "80G": gives the longest context; working memory is not counted
    sequences  how many are cached at the same time

    InputError for a model without multi-head latent attention, and for weights that do not fit.
    """
    found = caches(file)
    if not found:
        raise InputError("is not a model with multi-head latent attention, so its cache is not known", file=file.path)
    if found[0].layers < 1:
        raise InputError("has no layers to cache", file=file.path, expected="1 or more", found=found[0].layers)
    room = None if fit is None else _room(file, units.parse_size(fit))
    return [_record(cache, found, context, room, sequences) for cache in found]


def _room(file: GgufFile, memory: int) -> int:
    weights = sum(tensor.nbytes for tensor in file.tensors.values())
    if weights > memory:
        raise InputError(
            "the weights alone do not fit", file=file.path, expected=f"at most {memory} bytes", found=weights
        )
    return memory - weights


def _record(
    cache: Cache, all_caches: Sequence[Cache], context: int | None, room: int | None, sequences: int
) -> dict[str, Any]:
    record = {
        "cache": cache.name,
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
        record |= {"longest_context": room // (cache.token_bytes * sequences)}
    return record


def _saved(cache: Cache, all_caches: Sequence[Cache]) -> float | None:
    """Return which part of the cache a view in the place of V saves."""
    if cache.name != K_ONLY:
        return None
    with_v = next(other for other in all_caches if other.name == WITH_V and other.type == cache.type)
    return 1 - cache.token_bytes / with_v.token_bytes


_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "cache": ("cache", str),
    "type": ("type", str),
    "values": ("values", str),
    "bytes_per_token": ("per token", units.size),
    "bytes_per_layer": ("per layer", lambda nbytes: f"{nbytes / MIB:.2f} MiB"),
    "bytes": ("in all layers", lambda nbytes: f"{nbytes / MIB:.2f} MiB"),
    "saved": ("less than with V", lambda part: "" if part is None else f"{100 * part:.1f} %"),
    "longest_context": ("longest context", str),
}


def text(records: Sequence[dict[str, Any]]) -> str:
    """Return the same as a table; `values` are those of a token in one layer."""
    shown = [(key, *_COLUMNS[key]) for key in _COLUMNS if key in records[0]]
    rows = [[form(record[key]) for key, _, form in shown] for record in records]
    header = [title for _, title, _ in shown]
    return f"{records[0]['layers']} layers\n\n{table(header, rows, right=','.join(header[2:]))}"
