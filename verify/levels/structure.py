"""Level 1: the candidate's metadata, tokenizer and tensor table against what the reference says they must be."""

from __future__ import annotations

import math
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from gguf_mla.forward.model import MlaModel
from gguf_mla.forward.tensors import COMPUTED, LEGACY, LEGACY_HALVES, is_scale, shapes
from gguf_mla.layout.detect import attention_layout
from verify.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gguf_mla.container.reader import GgufFile
    from gguf_mla.forward.model import Model

LEVEL = "structure"
STORED_FLOAT = 1e-6  # metadata are float32, config.json is decimal

# Metadata key → the attribute of a model that it states. What a file has no key for is not among them: how groups are
# scored, and the epsilon of the compressed q and kv.
FIELDS = {
    "block_count": "layers",
    "embedding_length": "hidden",
    "feed_forward_length": "ffn",
    "attention.head_count": "heads",
    "attention.key_length_mla": "nope",
    "attention.value_length_mla": "value",
    "attention.kv_lora_rank": "kv_rank",
    "attention.q_lora_rank": "q_rank",
    "attention.layer_norm_rms_epsilon": "eps",
    "rope.dimension_count": "rope",
    "rope.freq_base": "theta",
    "leading_dense_block_count": "dense_layers",
    "expert_feed_forward_length": "expert_ffn",
    "expert_shared_count": "shared",
    "expert_count": "routing.experts",
    "expert_used_count": "routing.used",
    "expert_group_count": "routing.groups",
    "expert_group_used_count": "routing.groups_used",
    "expert_gating_func": "routing.score",
    "expert_weights_norm": "routing.normalised",
    "expert_weights_scale": "routing.scale",
}
YARN_FIELDS = {
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original",
    "rope.scaling.yarn_log_multiplier": "all_dim",
    "rope.scaling.yarn_beta_fast": "fast",
    "rope.scaling.yarn_beta_slow": "slow",
}
INDEXER_FIELDS = {
    "attention.indexer.head_count": "heads",
    "attention.indexer.key_length": "size",
    "attention.indexer.top_k": "top_k",
    "attention.indexer.types": "own_layers",
}


def compare_models(reference: Model, candidate: Model, architecture: str) -> Iterator[Finding]:
    """Yield every metadata key that describes another model than the reference's."""
    yield from _fields(FIELDS, reference, candidate, architecture)
    ours, theirs = reference.yarn, candidate.yarn
    if ours is not None and theirs is not None:
        yield from _fields(YARN_FIELDS, ours, theirs, architecture)
    elif ours is not theirs:
        expected, found = ("yarn" if yarn else "none" for yarn in (ours, theirs))
        yield Finding(LEVEL, f"{architecture}.rope.scaling.type", "is wrong", expected, found)
    if reference.indexer is not None and candidate.indexer is not None:
        yield from _fields(INDEXER_FIELDS, reference.indexer, candidate.indexer, architecture)
    if candidate.predictors not in (0, reference.predictors):  # a file may leave them out
        key = f"{architecture}.nextn_predict_layers"
        yield Finding(LEVEL, key, "describes other prediction layers", reference.predictors, candidate.predictors)


def _fields(fields: Mapping[str, str], reference: Any, candidate: Any, architecture: str) -> Iterator[Finding]:
    for key, attribute in fields.items():
        expected, found = (attrgetter(attribute)(side) for side in (reference, candidate))
        same = math.isclose(expected, found, rel_tol=STORED_FLOAT) if isinstance(expected, float) else expected == found
        if not same:
            yield Finding(
                LEVEL, f"{architecture}.{key}", f"describes another {attribute}", _short(expected), _short(found)
            )


def _short(value: Any) -> Any:
    return f"{value:.7g}" if isinstance(value, float) else value


def check_layout(file: GgufFile, model: Model, architecture: str) -> Iterator[Finding]:
    """Yield the cache sizes that do not belong to the file's attention layout; only MLA has two."""
    if not isinstance(model, MlaModel):
        return
    if attention_layout(file.tensors) == "legacy":
        expected = {
            "attention.head_count_kv": model.heads,
            "attention.key_length": model.nope + model.rope,
            "attention.value_length": model.value,
        }
    else:
        expected = {
            "attention.head_count_kv": 1,
            "attention.key_length": model.kv_rank + model.rope,
            "attention.value_length": model.kv_rank,
            "attention.key_length_mla": model.nope + model.rope,
            "attention.value_length_mla": model.value,
        }
    for key, size in expected.items():
        found = file.metadata.get(f"{architecture}.{key}", "nothing")
        if found != size:
            yield Finding(LEVEL, f"{architecture}.{key}", "does not belong to the attention layout", size, found)


def check_tensors(file: GgufFile, model: Model) -> Iterator[Finding]:
    """Yield every tensor that is missing, is there without need, or has the wrong shape, or a vector's wrong type."""
    wanted = stored_shapes(file, model)
    for name, shape in wanted.items():
        tensor = file.tensors.get(name)
        if tensor is None:
            yield Finding(LEVEL, name, "is missing", "x".join(map(str, shape)), "nothing")
        elif tensor.shape != shape:
            yield Finding(
                LEVEL, name, "has the wrong shape", "x".join(map(str, shape)), "x".join(map(str, tensor.shape))
            )
        elif len(shape) == 1 and tensor.type != "F32":
            yield Finding(LEVEL, name, "engines add and multiply vectors in F32 only", "F32", tensor.type)
    for name in file.tensors:
        if name not in wanted and name not in COMPUTED and not is_scale(name, file):
            yield Finding(LEVEL, name, "is not a tensor of this model")


def stored_shapes(file: GgufFile, model: Model) -> dict[str, tuple[int, ...]]:
    """Return the tensors a file of its attention layout holds."""
    wanted = shapes(model)
    if attention_layout(file.tensors) != "legacy":
        return wanted
    legacy = {
        f"blk.{layer}.{LEGACY}": (model.size("kv_b_rows"), model.size("kv_rank")) for layer in range(model.blocks)
    }
    return {name: shape for name, shape in wanted.items() if not name.endswith(LEGACY_HALVES)} | legacy
