"""Which attention layout a GGUF file has, and in which of the forms that were published over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.layout.heads import MLA_KEY, count
from gguf_mla.layout.names import lacks_first_layer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gguf_mla.container.reader import GgufFile

ARCHITECTURE = "deepseek2"  # the only one that was published in both layouts
TAG = "mla_optimized"  # the last part of a key that the first MLA files carry
KV_B, K_B, V_B = (f"blk.{{layer}}.{kind}.weight" for kind in ("attn_kv_b", "attn_k_b", "attn_v_b"))


def attention_layout(names: Iterable[str]) -> str:
    """Return "MLA" (attn_k_b and attn_v_b), "legacy" (attn_kv_b), "both", or "none"."""
    kinds = {name.split(".")[2] for name in names if name.startswith("blk.") and name.count(".") >= 3}
    mla, legacy = {"attn_k_b", "attn_v_b"} <= kinds, "attn_kv_b" in kinds
    if mla and legacy:
        return "both"
    return "MLA" if mla else "legacy" if legacy else "none"


def variant(file: GgufFile) -> str:
    """Return the layout in a few words, with what tells the file from one of today."""
    layout = attention_layout(file.tensors)
    if layout == "none":
        return layout
    found = ["MLA, with attn_kv_b beside attn_k_b and attn_v_b" if layout == "both" else layout]
    if any(
        len(t.shape) == 2 for name, t in file.tensors.items() if name.endswith((".attn_k_b.weight", ".attn_v_b.weight"))
    ):
        found.append("heads stacked in two dimensions (ik_llama.cpp)")
    architecture = file.metadata.get("general.architecture")  # only the first part of a split model says it
    if layout != "legacy" and architecture is not None and f"{architecture}.{MLA_KEY}" not in file.values:
        found.append(f"without {MLA_KEY}")
    if any(is_tag(key) for key in file.values):
        found.append(f"tagged {TAG}")
    return ", ".join(found)


def is_tag(key: str) -> bool:
    """Tell whether a metadata key is the tag of the first MLA files."""
    return key.rpartition(".")[2] == TAG


def layers(file: GgufFile) -> range:
    """Return the layers of a deepseek2 file whose every layer has its attention, in either layout.

    InputError for another architecture, and for a layer without attn_kv_b and without attn_k_b and attn_v_b.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise InputError(
            "is not a DeepSeek model that has both layouts",
            file=file.path,
            expected=f"the architecture {ARCHITECTURE}",
            found=architecture,
        )
    total = count(file, "block_count")
    own = total - count(file, "nextn_predict_layers", 0)
    alone = 0 < own < total and lacks_first_layer(file.tensors)  # multi-token prediction without a model
    found = range(own if alone else 0, total)
    for layer in found:
        kv_b, k_b, v_b = (name.format(layer=layer) in file.tensors for name in (KV_B, K_B, V_B))
        if not (kv_b or (k_b and v_b)):
            raise InputError(
                f"layer {layer} of {len(found)} has neither attn_kv_b nor both attn_k_b and attn_v_b",
                file=file.path,
                remedy="The model was pruned or saved in part: take a file with all of its layers",
            )
    return found
