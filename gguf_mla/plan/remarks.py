"""What is noteworthy of a GGUF file's tensors before hours of work: what is not there, and what no engine reads."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from gguf_mla.files.bounds import named
from gguf_mla.layout.names import split_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gguf_mla.container.values import Value
    from gguf_mla.plan.jobs import TensorJob

ENGINE_NAME_BYTES = 63  # ggml keeps a name in 64 bytes, the last of which is zero
_PARTS = {"attn": "attention", "ffn": "feed-forward part"}
SHOWN = 5


def remarks(names: Iterable[str], metadata: Mapping[str, Value]) -> Iterator[str]:
    """Yield a sentence for what some tensors, all of a file, lack or are called."""
    listed = list(names)
    yield from _missing(listed, metadata)
    yield from _long(listed)


def _missing(names: list[str], metadata: Mapping[str, Value]) -> Iterator[str]:
    layers = _count(metadata, "block_count")
    held: defaultdict[int, set[str]] = defaultdict(set)
    for name in names:
        layer, rest = split_name(name)
        if layer is not None:
            held[layer].add(rest.split(".")[0].split("_")[0])
    if not held or not layers:
        return
    # Layers of a number that nobody could list are a fault of block_count, and found where it is used. A file of
    # multi-token prediction alone has none of the layers before it.
    first = layers - _count(metadata, "nextn_predict_layers")
    begin = first if min(held) == first else 0
    absent = [layer for layer in range(begin, min(layers, begin + 2 * len(names))) if layer not in held]
    if absent:
        yield (
            f"{len(absent)} of {layers} layers have no tensors, though block_count counts them: "
            f"{named(map(str, absent), SHOWN)}. Engines will not load the file."
        )
    for part, words in _PARTS.items():
        lacking = [layer for layer, parts in sorted(held.items()) if part not in parts and layer < layers]
        if lacking and 2 * len(lacking) < len(held):
            yield f"{len(lacking)} of {layers} layers have no {words}: {named(map(str, lacking), SHOWN)}."


def _count(metadata: Mapping[str, Value], key: str) -> int:
    architecture = metadata.get("general.architecture")
    value = metadata.get(f"{architecture.data}.{key}") if architecture else None
    return value.data if value is not None and type(value.data) is int else 0


def _long(names: list[str]) -> Iterator[str]:
    long = [name for name in names if len(name.encode()) > ENGINE_NAME_BYTES]
    if long:
        yield (
            f"{len(long)} tensors have a name of more than {ENGINE_NAME_BYTES} bytes, where engines stop: "
            f"{named(long, SHOWN)}."
        )


def substituted(jobs: Iterable[TensorJob], wanted: Mapping[str, str]) -> str:
    """Say how many tensors got another type than the recipe gives them; "" for none. `wanted` has what it gives."""
    found = Counter((job.type, wanted[job.name]) for job in jobs if job.name in wanted)
    kinds = ", ".join(f"{count} {kind} instead of {asked}" for (kind, asked), count in found.items())
    return f"the rows of {found.total()} tensors do not fit the recipe's types: {kinds}" if found else ""
