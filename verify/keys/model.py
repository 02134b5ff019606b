"""What a file's architecture keys must say, from the model that the reference is.

Which keys there are and what is taken where one is missing: llama.cpp's loaders of deepseek2, deepseek32 and glm-dsa.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gguf_mla.forward.deepseek4_model import GATE, SCORE, V4Model
from gguf_mla.forward.model import MlaModel
from gguf_mla.forward.of_gguf import GATES, MLA_SCALED
from gguf_mla.layout.detect import attention_layout
from verify.findings import Grade
from verify.keys.compressed import of_compressed
from verify.keys.expected import REQUIRED, Expected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gguf_mla.forward.model import Linear, Model, Routing, Temperature, Yarn

Keys = dict[str, Expected]
TYPES_KEY = "attention.indexer.types"
NOTHING = 1e-9  # what is left of a multiplier of 0


def of_model(
    reference: Model, candidate: Model, architecture: str, names: Iterable[str], ratios: object = None
) -> Keys:
    """Return what each key, without the architecture's prefix, must say in a file of these tensors.

    `candidate` is the model that the file is read as: it holds what readers take for the keys that the file lacks.
    `ratios` is what it says of compression.
    """
    takes_one = architecture not in MLA_SCALED
    keys = _sizes(reference) | _experts(reference, candidate) | _rope(reference, takes_one=takes_one)
    keys |= _indexer(reference, candidate)
    if isinstance(reference, MlaModel):
        keys |= _temperature(reference.temperature)
        keys |= _legacy(reference) if attention_layout(names) == "legacy" else _latent(reference)
    if isinstance(reference, V4Model):
        keys |= of_compressed(reference, ratios)
    return keys


def _sizes(model: Model) -> Keys:
    return {
        "block_count": Expected(model.blocks),
        "embedding_length": Expected(model.hidden),
        "feed_forward_length": Expected(model.ffn),
        "attention.head_count": Expected(model.heads),
        "attention.layer_norm_rms_epsilon": Expected(model.eps),
        "leading_dense_block_count": Expected(model.dense_layers, 0, optional=not model.dense_layers),
        "nextn_predict_layers": Expected(model.predictors, 0, optional=True),
        "vocab_size": Expected(
            model.vocab, grade=Grade.DIFFERS, note="llama.cpp counts the tokens of the vocabulary instead"
        ),
        "attention.q_lora_rank": _q_rank(model),
    }


def _q_rank(model: Model) -> Expected:
    if model.q_rank:
        return Expected(model.q_rank)
    note = "without it llama.cpp loads a model of 26 or 27 layers only"
    return Expected(0, REQUIRED, Grade.DIFFERS, note) if model.layers not in (26, 27) else Expected(0, 0, optional=True)


def _latent(model: MlaModel) -> Keys:
    return {
        "attention.head_count_kv": Expected(1, model.heads),
        "attention.key_length": Expected(model.kv_rank + model.rope),
        "attention.value_length": Expected(model.kv_rank),
        "attention.key_length_mla": Expected(model.nope + model.rope),
        "attention.value_length_mla": Expected(model.value),
        "attention.kv_lora_rank": Expected(model.kv_rank),
    }


def _legacy(model: MlaModel) -> Keys:
    """Return the sizes of a file with attn_kv_b, which says nothing of a latent row but its rank."""
    note = "with it llama.cpp looks for attn_k_b and attn_v_b"
    return {
        "attention.head_count_kv": Expected(model.heads, model.heads),
        "attention.key_length": Expected(model.nope + model.rope),
        "attention.value_length": Expected(model.value),
        "attention.key_length_mla": Expected(None, note=note),
        "attention.value_length_mla": Expected(None, note=note),
        "attention.kv_lora_rank": Expected(model.kv_rank),
    }


# Files from before engines read these keys lack them, though their weights may be right.
GROUPS = "groups limit which experts a token may choose; quantize COPY --override-kv gives a copy the right value"


def _experts(model: Model, candidate: Model) -> Keys:
    routing = model.routing
    if not routing.experts:
        return _no_experts(model)
    numbers = {word: number for number, word in {**GATES, GATE: SCORE}.items()}
    keys = {
        "expert_count": Expected(routing.experts),
        "expert_used_count": Expected(routing.used),
        "expert_shared_count": Expected(model.shared),
        "expert_feed_forward_length": Expected(model.expert_ffn),
        "expert_gating_func": Expected(numbers[routing.score], numbers[candidate.routing.score]),
        "expert_weights_norm": Expected(routing.normalised, absent=False, optional=True),
        "expert_weights_scale": Expected(routing.scale, 1.0, alike=(0.0,) if routing.scale == 1 else ()),
    }
    # Where all groups may be chosen from, there is nothing that they limit.
    free = _all_groups(routing) and _all_groups(candidate.routing)
    grade, note = (Grade.DIFFERS, "all experts may be chosen all the same") if free else (Grade.WRONG, GROUPS)
    return keys | {
        "expert_group_count": Expected(routing.groups, 1, grade, note),
        "expert_group_used_count": Expected(routing.groups_used, 1, grade, note),
    }


def _no_experts(model: Model) -> Keys:
    """Return the keys of a model whose layers are all dense: readers ask for some, and do nothing with them."""
    note, asked = "no layer has experts", "no layer has experts, but llama.cpp does not load a file without it"
    unused = Expected(None, grade=Grade.DIFFERS, note=note)
    scale = model.routing.scale
    return {
        "expert_count": Expected(0, 0, optional=True),
        "expert_used_count": Expected(0, 0, optional=True),
        "expert_shared_count": Expected(0, REQUIRED, Grade.DIFFERS, asked, missing=Grade.WRONG),
        "expert_feed_forward_length": Expected(model.ffn, REQUIRED, Grade.DIFFERS, asked, missing=Grade.WRONG),
        "expert_weights_scale": Expected(scale, scale, Grade.DIFFERS, note, optional=True),
        **{f"expert_{name}": unused for name in ("gating_func", "weights_norm", "group_count", "group_used_count")},
    }


def _all_groups(routing: Routing) -> bool:
    return routing.groups <= 1 or routing.groups_used >= routing.groups


def _temperature(temperature: Temperature | None) -> Keys:
    """Return the keys of queries that grow with their position; where they do not, neither key may be there."""
    if temperature is None:
        return {}
    return {
        "attention.temperature_scale": Expected(temperature.scale, 0.0),
        "attention.temperature_length": Expected(temperature.length),
    }


def _rope(model: Model, *, takes_one: bool) -> Keys:
    keys = {"rope.dimension_count": Expected(model.rope), "rope.freq_base": Expected(model.theta, 10000.0)}
    if model.linear is not None:
        return keys | _linear(model.linear)
    return keys | (_straight() if model.yarn is None else _yarn(model.yarn, takes_one=takes_one))


def _yarn(yarn: Yarn, *, takes_one: bool) -> Keys:
    """Return YaRN's keys, for readers that take mscale for 1, or, as deepseek2's, for mscale_all_dim.

    With m = yarn_log_multiplier and a = attn_factor the ones multiply the softmax's scale by k², k = a·(1 + 0.1·ln s),
    and what is rotated by k / (1 + m·ln s), the others what is rotated by a, and k = a·(1 + m·ln s).
    """
    root, stretch = math.sqrt(yarn.softmax), math.log(max(1.0, yarn.factor))
    multiplier = (root / yarn.rotated - 1) / stretch if stretch else 0.0
    if abs(multiplier) < NOTHING:  # then both take mscale for 1
        multiplier, takes_one = 0.0, True
    factor = root / (1 + 0.1 * stretch) if takes_one else yarn.rotated
    return {
        "rope.scaling.type": Expected("yarn", "linear"),
        "rope.scaling.factor": Expected(yarn.factor, 1.0),
        "rope.scaling.original_context_length": Expected(yarn.original),
        "rope.scaling.yarn_log_multiplier": Expected(multiplier, 0.0),
        "rope.scaling.attn_factor": Expected(factor, 1.0, optional=True, note="what is rotated is multiplied by it"),
        "rope.scaling.yarn_beta_fast": Expected(yarn.fast, 32.0, optional=True),
        "rope.scaling.yarn_beta_slow": Expected(yarn.slow, 1.0, optional=True),
    }


def _linear(linear: Linear) -> Keys:
    """Return the keys of positions divided by a factor.

    Readers make attention sharper by (1 + 0.1·ln s)·(1 + m·ln s), m = yarn_log_multiplier: m must make this 1.
    """
    stretch = math.log(linear.factor)
    undone = (math.sqrt(linear.scale) / (1 + 0.1 * stretch) - 1) / stretch if stretch else 0.0
    return {
        "rope.scaling.type": Expected("linear", "linear"),
        "rope.scaling.factor": Expected(linear.factor, 1.0),
        "rope.scaling.yarn_log_multiplier": Expected(
            undone, 0.0, note="llama.cpp makes attention sharper by the logarithm of the factor; it takes that back"
        ),
        **_unused("original_context_length", "yarn_beta_fast", "yarn_beta_slow"),
    }


def _unused(*names: str) -> Keys:
    note = "positions are not stretched as YaRN does, so nothing is done with it"
    return {f"rope.scaling.{name}": Expected(None, grade=Grade.DIFFERS, note=note) for name in names}


def _straight() -> Keys:
    """Return the keys of positions that are taken as they are: others may be there, and do nothing."""
    note = "positions are not stretched, so nothing is done with it"
    unused = Expected(None, grade=Grade.DIFFERS, note=note)
    return {
        "rope.scaling.type": Expected("none", "none", optional=True, alike=("linear",)),
        "rope.scaling.factor": Expected(1.0, 1.0, optional=True),
        **{f"rope.scaling.{name}": unused for name in ("original_context_length", "yarn_log_multiplier")},
        **{f"rope.scaling.yarn_beta_{name}": unused for name in ("fast", "slow")},
    }


def _indexer(model: Model, candidate: Model) -> Keys:
    indexer, theirs = model.indexer, candidate.indexer
    if indexer is None:
        note = "the model attends to all tokens"
        names = ("head_count", "key_length", "top_k", "types")
        return {f"attention.indexer.{name}": Expected(None, grade=Grade.DIFFERS, note=note) for name in names}
    return {
        "attention.indexer.head_count": Expected(indexer.heads),
        "attention.indexer.key_length": Expected(indexer.size),
        "attention.indexer.top_k": Expected(indexer.top_k),
        TYPES_KEY: Expected(
            list(indexer.own_layers),
            list(theirs.own_layers) if theirs else REQUIRED,
            note="which layers choose tokens for themselves",
            optional=all(indexer.own_layers),
        ),
    }
