"""Saved tensors that no model needs: computed buffers, and what training and serving tools keep beside."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gguf_mla.sources.recognise.reading import Reading

COMPUTED = "computed from the configuration"
LEFTOVERS = (
    (r"(?:.+\.)?rotary_emb\.(?:inv_freq|original_inv_freq|cos_cached|sin_cached|_cos_cached|_sin_cached)", COMPUTED),
    (r"(?:.+\.)?(?:position_ids|attention_mask|causal_mask)", COMPUTED),
    (r"(?:.+\.)?self_attn\.(?:masked_bias|bias)", COMPUTED),
    (r"(?:.+\.)?self_attn\.(?:[kqv]_scale|attn\.[kqv]_scale|kv_scale|prob_scale|[kv]_proj\.output_scale)",
     "a scale of the cache, which an engine quantizes its own way"),
    (r"(?:.+\.)?experts\.(?:w13|w2|gate_up_proj|down_proj)_(?:input|activation)_scale",
     "a scale of activations, which ggml rounds by itself"),
    (r"(?:.+\.)?_extra_state", "the state of Transformer Engine, not weights"),
    (r"(?:optimizer|opt_state|exp_avg|exp_avg_sq|master_weights?)\..+|.+\.(?:exp_avg|exp_avg_sq|momentum_buffer)",
     "the state of an optimizer, not weights"),
    (r"(?:.+\.)?(?:v_head|value_head)\..+", "a value head of reinforcement learning, which no GGUF has a place for"),
    (r"(?:.+\.)?mlp\.(?:tokens_per_expert|expert_load|gate\.tokens_per_expert|gate\.expert_load)",
     "a count that training balances its experts by"),
)  # fmt: skip
_COMPILED = re.compile("|".join(f"({pattern})" for pattern, _ in LEFTOVERS))
# Every leftover has one of these: it costs much less to look for them first.
_HINTS = re.compile(
    r"rotary_emb|position_ids|_mask|self_attn\.(?:masked_)?bias$|_scale$|_extra_state|optimizer|opt_state|exp_avg"
    r"|master_weight|momentum_buffer|v_head|value_head|tokens_per_expert|expert_load"
)


def reason_of(name: str) -> str | None:
    """Return why a tensor of this name is not needed, None where it may be."""
    if not _HINTS.search(name):
        return None
    found = _COMPILED.fullmatch(name)
    return LEFTOVERS[(found.lastindex or 1) - 1][1] if found else None


def recognise(reading: Reading) -> Reading:
    """Return the reading without what no model needs; the plan lists it as dropped."""
    if not any(map(reason_of, reading.kinds)):
        return reading
    names = (*reading.stored, *reading.absent)
    return reading.without({name: reason for name in names if (reason := reason_of(name)) is not None})
