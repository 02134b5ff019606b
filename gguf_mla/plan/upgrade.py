"""A legacy deepseek2 file as an MLA file: attn_kv_b becomes attn_k_b and attn_v_b, and the metadata say so.

attn_v_b is made of rows of attn_kv_b as they are; attn_k_b is transposed, so it is encoded anew. What early files left
out is filled in, with a sentence each. Source of the forms: the files that llama.cpp before its MLA support,
fairydreaming's first MLA branch and ik_llama.cpp wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.container.values import Value, f32, u32
from gguf_mla.errors import InputError
from gguf_mla.layout.detect import ARCHITECTURE, K_B, KV_B, V_B, is_tag, layers
from gguf_mla.layout.heads import KEY, KV_HEADS, MLA_KEY, MLA_VALUE, VALUE, Heads, count, flat, heads_of
from gguf_mla.plan.draft import Content, as_stored
from gguf_mla.plan.halves import check_shape, key_parts, value_parts
from gguf_mla.plan.jobs import Part, Untyped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf_mla.container.reader import GgufFile

SOFTMAX, SIGMOID = 1, 2
V3_EXPERTS, V3_GROUPS, V3_GROUPS_USED = 256, 8, 4
V3_LOG_MULTIPLIER = 0.1  # 0.1 · mscale_all_dim, which is 1 in every published model with a corrected router

GATING, LOG_MULTIPLIER = "expert_gating_func", "rope.scaling.yarn_log_multiplier"
GROUPS, GROUPS_USED = "expert_group_count", "expert_group_used_count"
_WHY = {
    GATING: "2 (sigmoid) where the router has a correction bias, else 1 (softmax)",
    GROUPS: "which DeepSeek-V3 and R1 have with their 256 experts",
    GROUPS_USED: "which DeepSeek-V3 and R1 have with their 256 experts",
    LOG_MULTIPLIER: "which belongs to every model with YaRN and a correction bias",
}


def upgraded(file: GgufFile) -> Content:
    """Return what an MLA file made from this one holds; a tensor without a type has to be encoded.

    InputError for a file that is an MLA file already, is not of architecture deepseek2, or is broken.
    """
    names = {name.format(layer=layer): layer for layer in layers(file) for name in (KV_B, K_B, V_B)}
    heads = heads_of(file)
    stored = as_stored(file)
    tensors = tuple(
        new
        for tensor in stored.tensors
        for new in (_halves(tensor, names[tensor.name], heads, file) if tensor.name in names else (tensor,))
    )
    filled, warnings = _filled(file)
    kept = {key: value for key, value in file.values.items() if not is_tag(key)}
    metadata = kept | _sizes(heads) | filled
    if tensors == stored.tensors and metadata == file.values:
        raise InputError("is in the MLA layout already", file=file.path, remedy="It needs no upgrade")
    used = {part.source for tensor in tensors for part in tensor.parts}
    dropped = {name: "attn_k_b and attn_v_b are there too" for name in file.tensors if name not in used}
    return Content(file.path, tensors, metadata, dropped, tuple(warnings))


def _halves(tensor: Untyped, layer: int, heads: Heads, file: GgufFile) -> Iterator[Untyped]:
    """Yield what a kv_b, k_b or v_b becomes: the halves that the file lacks, or itself with three dimensions."""
    k_b, v_b = K_B.format(layer=layer), V_B.format(layer=layer)
    for name, shape in ((k_b, heads.k_b), (v_b, heads.v_b)):
        if tensor.name == name:
            check_shape(tensor, (shape, flat(shape)), file)
            yield _stacked(tensor, shape)
    if tensor.name in (k_b, v_b):
        return
    check_shape(tensor, (heads.kv_b,), file)
    sizes = heads.count, heads.nope, heads.value
    if k_b not in file.tensors:
        yield Untyped(k_b, heads.k_b, key_parts(tensor.name, *sizes, heads.rank), tensor.stored)
    if v_b not in file.tensors:
        yield Untyped(v_b, heads.v_b, value_parts(tensor.name, *sizes), tensor.stored, tensor.ggml_type)


def _stacked(tensor: Untyped, shape: tuple[int, int, int]) -> Untyped:
    parts = tuple(Part(tensor.name, head * shape[1], (head + 1) * shape[1]) for head in range(shape[0]))
    return Untyped(tensor.name, shape, parts, tensor.stored, tensor.ggml_type)


def _sizes(heads: Heads) -> dict[str, Value]:
    sizes = {
        KV_HEADS: 1,  # all heads share the latent row
        KEY: heads.rank + heads.rope,
        VALUE: heads.rank,
        MLA_KEY: heads.nope + heads.rope,
        MLA_VALUE: heads.value,
    }
    return {f"{ARCHITECTURE}.{key}": u32(size) for key, size in sizes.items()}


def _filled(file: GgufFile) -> tuple[dict[str, Value], list[str]]:
    """Return the keys that early files lack and readers need, and a sentence for each."""
    lacking = {key: value for key, value in _early(file).items() if f"{ARCHITECTURE}.{key}" not in file.values}
    said = [f"The file has no {key}; {value.data:g} is filled in, {_WHY[key]}." for key, value in lacking.items()]
    filled = {f"{ARCHITECTURE}.{key}": value for key, value in lacking.items()}
    if _uses_yarn(file) and not {f"{ARCHITECTURE}.{LOG_MULTIPLIER}"} & {*file.values, *filled}:
        said.append(
            f"The file uses YaRN and has no {LOG_MULTIPLIER}: V2 and V2-Lite need 0.0707, V2.5 needs 0.1, and the file "
            "does not tell which it is, so nothing is filled in."
        )
    return filled, said


def _early(file: GgufFile) -> dict[str, Value]:
    """Return what the tensors and counts of a file say about keys that were invented after it."""
    experts = count(file, "expert_count", 0)
    if not experts:
        return {}
    corrected = any(name.endswith(".exp_probs_b.bias") for name in file.tensors)
    known = {GATING: u32(SIGMOID if corrected else SOFTMAX)}
    if corrected and experts == V3_EXPERTS:
        known |= {GROUPS: u32(V3_GROUPS), GROUPS_USED: u32(V3_GROUPS_USED)}
    if corrected and _uses_yarn(file):
        known[LOG_MULTIPLIER] = f32(V3_LOG_MULTIPLIER)
    return known


def _uses_yarn(file: GgufFile) -> bool:
    return bool(file.metadata.get(f"{ARCHITECTURE}.rope.scaling.type") == "yarn")
