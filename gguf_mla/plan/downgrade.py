"""An MLA file as a legacy deepseek2 file: attn_k_b and attn_v_b become attn_kv_b, and the metadata say so.

The rows of attn_v_b are kept as they are; those of attn_k_b are transposed, so they are encoded anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.container.values import u32
from gguf_mla.errors import InputError
from gguf_mla.layout.detect import ARCHITECTURE, K_B, KV_B, V_B, attention_layout, is_tag, layers
from gguf_mla.layout.heads import KEY, KV_HEADS, MLA_KEY, MLA_VALUE, VALUE, Heads, flat, heads_of
from gguf_mla.plan.draft import Content, untyped
from gguf_mla.plan.halves import check_shape, joined_parts
from gguf_mla.plan.jobs import Untyped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf_mla.container.reader import GgufFile
    from gguf_mla.container.values import Value


def downgraded(file: GgufFile) -> Content:
    """Return what a legacy file made from this one holds; attn_kv_b gets the type of attn_v_b.

    InputError for a file that is a legacy file already, is not of architecture deepseek2, or is broken.
    """
    found = layers(file)
    if attention_layout(file.tensors) == "legacy":
        raise InputError("is in the legacy layout already", file=file.path, remedy="It needs no downgrade")
    tensors = tuple(_tensors(file, found, heads_of(file)))
    used = {part.source for tensor in tensors for part in tensor.parts}
    dropped = {name: "attn_kv_b is there too" for name in file.tensors if name not in used}
    return Content(file.path, tensors, _metadata(file, heads_of(file)), dropped)


def _tensors(file: GgufFile, layers: range, heads: Heads) -> Iterator[Untyped]:
    """Yield the tensors in their order, attn_kv_b where attn_k_b was."""
    keys = {K_B.format(layer=layer): layer for layer in layers}
    values = {V_B.format(layer=layer) for layer in layers}
    for name, tensor in file.tensors.items():
        if name not in keys and name not in values:
            yield untyped(tensor)
        elif name in keys and KV_B.format(layer=keys[name]) not in file.tensors:
            yield _joined(file, keys[name], heads)


def _joined(file: GgufFile, layer: int, heads: Heads) -> Untyped:
    k_b, v_b = (file.tensors[name.format(layer=layer)] for name in (K_B, V_B))
    check_shape(untyped(k_b), (heads.k_b, flat(heads.k_b)), file)
    check_shape(untyped(v_b), (heads.v_b, flat(heads.v_b)), file)
    parts = joined_parts(k_b.name, v_b.name, heads.count, heads.rank, heads.nope, heads.value)
    return Untyped(KV_B.format(layer=layer), heads.kv_b, parts, v_b.type, v_b.type)


def _metadata(file: GgufFile, heads: Heads) -> dict[str, Value]:
    left_out = {f"{ARCHITECTURE}.{key}" for key in (MLA_KEY, MLA_VALUE)}
    kept = {key: value for key, value in file.values.items() if key not in left_out and not is_tag(key)}
    sizes = {KV_HEADS: heads.count, KEY: heads.nope + heads.rope, VALUE: heads.value}
    return kept | {f"{ARCHITECTURE}.{key}": u32(size) for key, size in sizes.items()}
