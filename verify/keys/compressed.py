"""What the keys of a DeepSeek-V4 file must say, beside those of every model.

Which keys there are: llama.cpp's loader of deepseek4, b11434.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from verify.findings import Grade
from verify.keys.expected import Expected

if TYPE_CHECKING:
    from gguf_mla.forward.deepseek4_model import V4Model

Keys = dict[str, Expected]


def of_compressed(model: V4Model, theirs: object) -> Keys:
    """Return what each key, without the architecture's prefix, must say; `theirs` is what the file says of ratios."""
    limits = [model.limit] * model.blocks
    return {
        "attention.head_count_kv": Expected(1),
        "attention.key_length": Expected(model.head),
        "attention.value_length": Expected(model.head),
        "attention.sliding_window": Expected(model.window),
        "attention.compress_ratios": Expected(_with_prediction(model, theirs)),
        "attention.compress_rope_freq_base": Expected(model.compressed_theta),
        "attention.output_group_count": Expected(model.groups),
        "attention.output_lora_rank": Expected(model.o_rank),
        "attention.indexer.head_count": Expected(model.index_heads),
        "attention.indexer.key_length": Expected(model.index_key),
        "attention.indexer.top_k": Expected(model.top_k),
        "hyper_connection.count": Expected(model.streams),
        "hyper_connection.sinkhorn_iterations": Expected(model.rounds),
        "hyper_connection.epsilon": Expected(model.floor),
        "hash_layer_count": Expected(model.by_id),
        "swiglu_clamp_exp": Expected(limits),
        "swiglu_clamp_shexp": Expected(limits, note="llama.cpp takes none where it is missing"),
        "embedding_length_out": Expected(model.streams * model.hidden, grade=Grade.DIFFERS),
        "feed_forward_length": Expected(model.ffn, model.ffn, optional=True),
        "rope.scaling.yarn_log_multiplier": Expected(0.0, 0.0, optional=True),
        "rope.scaling.attn_factor": Expected(1.0, 1.0, optional=True),
        "expert_group_count": Expected(1, 1, optional=True),
        "expert_group_used_count": Expected(1, 1, optional=True),
    }


def _with_prediction(model: V4Model, theirs: object) -> list[int]:
    """Return the ratios of the layers; those of prediction that a file may list without it are not looked at."""
    more = list(theirs)[model.blocks :] if isinstance(theirs, list | tuple) else []
    return [*model.ratios[: model.blocks], *more]
