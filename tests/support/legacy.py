"""Files as they were before today's MLA layout, written from today's by index arithmetic of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.container.reader import open_gguf
from gguf_mla.container.values import Value, boolean, u32
from gguf_mla.container.writer import TensorSpec, lay_out

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

WORDS: dict[str, Any] = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
VARIANTS = ("legacy", "beside", "tagged", "stacked")

Tensors = dict[str, tuple[tuple[int, ...], str, "NDArray[Any]"]]


def write_variant(mla: Path, out: Path, variant: str, leave_out: tuple[str, ...] = ()) -> Path:
    """Write a float MLA file in one of the older forms, without the metadata `leave_out`.

    legacy   attn_kv_b alone
    beside   attn_kv_b beside attn_k_b and attn_v_b, metadata as today
    tagged   attn_kv_b beside attn_k_b and attn_v_b in two dimensions, legacy metadata and the tag of the first branch
    stacked  attn_k_b and attn_v_b in two dimensions, legacy metadata
    """
    file = open_gguf(mla)
    tensors: Tensors = {t.name: (t.shape, t.type, t.read()) for t in file.tensors.values()}
    changed: Tensors = {}
    for name, tensor in tensors.items():
        if ".attn_k_b." in name:
            v_name = name.replace("attn_k_b", "attn_v_b")
            changed |= halves(variant, name, tensor, v_name, tensors[v_name])
        elif ".attn_v_b." not in name:
            changed[name] = tensor
    metadata = dict(file.values) if variant == "beside" else legacy_metadata(file.values)
    if variant == "tagged":
        metadata["deepseek2.mla_optimized"] = boolean(True)
    write(out, {key: value for key, value in metadata.items() if key not in leave_out}, changed)
    return out


def halves(variant: str, k_name: str, k: Any, v_name: str, v: Any) -> Tensors:
    """The attention tensors of a layer in a variant."""
    kv = {k_name.replace("attn_k_b", "attn_kv_b"): joined(k, v)}
    flat = {name: ((t[0][0] * t[0][1], t[0][2]), t[1], t[2]) for name, t in ((k_name, k), (v_name, v))}
    return {"legacy": kv, "beside": kv | {k_name: k, v_name: v}, "tagged": kv | flat, "stacked": flat}[variant]


def joined(k: Any, v: Any) -> tuple[tuple[int, int], str, NDArray[Any]]:
    """attn_kv_b [H·(n+v), r] from attn_k_b [H, r, n] and attn_v_b [H, v, r], element by element."""
    (heads, rank, nope), (_, value, _) = k[0], v[0]
    keys = k[2].reshape(-1).view(WORDS[k[1]])
    values = v[2].reshape(-1).view(WORDS[v[1]])
    out = np.full(heads * (nope + value) * rank, 0x7F, keys.dtype)
    for head in range(heads):
        for row in range(nope):
            at = (head * (nope + value) + row) * rank
            out[at : at + rank] = keys[head * rank * nope + row :: nope][:rank]
        for row in range(value):
            at = (head * (nope + value) + nope + row) * rank
            out[at : at + rank] = values[(head * value + row) * rank :][:rank]
    return (heads * (nope + value), rank), k[1], out.view(np.uint8)


def legacy_metadata(values: Mapping[str, Value]) -> dict[str, Value]:
    def number(key: str) -> int:
        return int(values[f"deepseek2.attention.{key}"].data)

    sizes = {
        "head_count_kv": number("head_count"),
        "key_length": number("key_length_mla"),
        "value_length": number("value_length_mla"),
    }
    kept = {key: value for key, value in values.items() if not key.endswith("_mla")}
    return kept | {f"deepseek2.attention.{key}": u32(size) for key, size in sizes.items()}


def write(path: Path, metadata: Mapping[str, Value], tensors: Tensors) -> None:
    layout = lay_out(metadata, [TensorSpec(name, shape, kind) for name, (shape, kind, _) in tensors.items()])
    data = bytearray(layout.size)
    data[: len(layout.head)] = layout.head
    for (_, _, content), offset in zip(tensors.values(), layout.offsets, strict=True):
        data[offset : offset + content.nbytes] = content.tobytes()
    path.write_bytes(data)
