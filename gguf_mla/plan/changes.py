"""What an upgrade to the MLA layout would change in a file, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.container.splits import SPLIT_COUNT
from gguf_mla.errors import InputError
from gguf_mla.layout.detect import ARCHITECTURE, attention_layout
from gguf_mla.plan.upgrade import upgraded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf_mla.container.reader import GgufFile
    from gguf_mla.plan.draft import Content


def changes(file: GgufFile) -> list[str]:
    """Return a line for every kind of change, or what prevents an upgrade; [] for files that no upgrade applies to."""
    foreign = file.metadata.get("general.architecture") != ARCHITECTURE or attention_layout(file.tensors) == "none"
    if foreign or SPLIT_COUNT in file.values:
        return []
    try:
        content = upgraded(file)
    except InputError as error:
        return [f"none: {error.what}"]
    return [*_tensors(file, content), *_metadata(file, content), *content.warnings]


def _tensors(file: GgufFile, content: Content) -> Iterator[str]:
    split = {tensor.parts[0].source for tensor in content.tensors if tensor.name not in file.tensors}
    shaped = [t for t in content.tensors if t.name in file.tensors and file.tensors[t.name].shape != t.shape]
    if split:
        yield f"{len(split)} attn_kv_b become attn_k_b and attn_v_b"
    if shaped:
        yield f"{len(shaped)} attn_k_b and attn_v_b get three dimensions"
    if content.dropped:
        yield f"{len(content.dropped)} attn_kv_b are left out"


def _metadata(file: GgufFile, content: Content) -> Iterator[str]:
    for key in [*file.values, *(key for key in content.metadata if key not in file.values)]:
        before, after = (values[key].data if key in values else None for values in (file.values, content.metadata))
        if before != after:
            yield f"{key}: {'nothing' if before is None else before} → {'nothing' if after is None else after}"
