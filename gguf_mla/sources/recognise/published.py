"""The names that DeepSeek-V4 is published under, read as those of transformers, which every other model here has.

transformers' save_pretrained gives most of these names back after "model.", has its own for the rest, and calls kv_norm
attn.norm. The scales of a weight lie beside it as X.scale: those of FP8 become X.weight_scale_inv, those of 4-bit
floats X.weight_scale, so that one format reads them under whatever name a model came. Multi-token prediction, mtp.K.,
is read as the layers after the last, where all other models have it; what has no e_proj is not that, but the draft
model of the dated editions (DSpark), and keeps its names. Source: the published shards.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf_mla.sources.recognise.reading import Reading

# Published name → transformers', in the model, in a layer, and in one of its experts.
_ATTENTION, _COMPRESSOR, _INDEXER = "self_attn.", "self_attn.compressor.", "self_attn.compressor.indexer."
MODEL = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "hc_head_fn": "model.hc_head.hc_fn",
    "hc_head_base": "model.hc_head.hc_base",
    "hc_head_scale": "model.hc_head.hc_scale",
}
LAYER = {
    **{f"hc_{part}_{kind}": f"{part}_hc.{kind}" for part in ("attn", "ffn") for kind in ("fn", "base", "scale")},
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn.attn_sink": _ATTENTION + "sinks",
    "attn.wq_a.weight": _ATTENTION + "q_a_proj.weight",
    "attn.q_norm.weight": _ATTENTION + "q_a_norm.weight",
    "attn.wq_b.weight": _ATTENTION + "q_b_proj.weight",
    "attn.wkv.weight": _ATTENTION + "kv_proj.weight",
    "attn.kv_norm.weight": _ATTENTION + "kv_norm.weight",
    "attn.norm.weight": _ATTENTION + "kv_norm.weight",
    "attn.wo_a.weight": _ATTENTION + "o_a_proj.weight",
    "attn.wo_b.weight": _ATTENTION + "o_b_proj.weight",
    "attn.compressor.wkv.weight": _COMPRESSOR + "kv_proj.weight",
    "attn.compressor.wgate.weight": _COMPRESSOR + "gate_proj.weight",
    "attn.compressor.ape": _COMPRESSOR + "position_bias",
    "attn.compressor.norm.weight": _COMPRESSOR + "kv_norm.weight",
    "attn.indexer.wq_b.weight": _INDEXER + "q_b_proj.weight",
    "attn.indexer.weights_proj.weight": _INDEXER + "scorer.weights_proj.weight",
    "attn.indexer.compressor.wkv.weight": _INDEXER + "kv_proj.weight",
    "attn.indexer.compressor.wgate.weight": _INDEXER + "gate_proj.weight",
    "attn.indexer.compressor.ape": _INDEXER + "position_bias",
    "attn.indexer.compressor.norm.weight": _INDEXER + "kv_norm.weight",
    "ffn.gate.weight": "mlp.gate.weight",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "ffn.gate.bias_vl": "mlp.gate.e_score_correction_bias_vl",
    "ffn.gate.tid2eid": "mlp.gate.tid2eid",
    "e_proj.weight": "e_proj.weight",
    "h_proj.weight": "h_proj.weight",
}
PREDICTION = {
    "norm.weight": "shared_head.norm.weight",
    **{f"hc_head_{kind}": f"hc_head.hc_{kind}" for kind in ("fn", "base", "scale")},
}
EXPERT = {"w1.weight": "gate_proj.weight", "w2.weight": "down_proj.weight", "w3.weight": "up_proj.weight"}
_PLACE = re.compile(r"(?:model\.)?layers\.(\d{1,9})\.(?:ffn\.((?:experts\.\d{1,9}|shared_experts)\.))?(.+)")
_PREDICTING = re.compile(r"(?:model\.)?mtp\.(\d{1,9})\.(.+)")
_PREDICTS, _PREDICTION_MARKS = "e_proj.weight", frozenset({"mtp.0.e_proj.weight", "model.mtp.0.e_proj.weight"})
_MARKS = frozenset({"layers.0.hc_attn_fn", "model.layers.0.hc_attn_fn"})  # with the number of any layer
WEIGHT, SCALE = ".weight", ".scale"
BYTES = ("I8", "U8")  # two floats of 4 bits in each


def recognise(reading: Reading) -> Reading:
    """Return the reading with transformers' names where the tensors have DeepSeek-V4's own."""
    if _MARKS.isdisjoint(reading.kinds):
        return reading
    reading = _after_the_last(reading)

    def scales(weight: str) -> str:
        stored = reading.stored.get(weight)
        return "_scale" if stored is not None and stored.dtype in BYTES else "_scale_inv"

    return reading.renamed(lambda name: standard(name, scales))


def _after_the_last(reading: Reading) -> Reading:
    """Return the reading with the names of layers for what predicts, one after the other after the model's."""
    layers = reading.config.get("num_hidden_layers")
    if type(layers) is not int or _PREDICTION_MARKS.isdisjoint(reading.kinds):
        return reading
    names = (*reading.stored, *reading.absent)
    found = {name: place for name in names if (place := _PREDICTING.fullmatch(name))}
    numbers = {place[1] for place in found.values() if place[2] == _PREDICTS}
    places = {name: (int(place[1]), place[2]) for name, place in found.items() if place[1] in numbers}
    return reading.renamed(lambda name: _layer_name(layers, *places[name]) if name in places else name)


def _layer_name(layers: int, number: int, rest: str) -> str:
    return f"model.layers.{layers + number}.{PREDICTION.get(rest, rest)}"


def standard(name: str, scales: Callable[[str], str]) -> str:
    """Return transformers' name of a published one, others as they are; `scales` tells how those of a weight end.

    Scales are called so even of a weight without another name: a draft model, which is left out, is read first.
    """
    if name.endswith(SCALE):
        weight = name.removesuffix(SCALE) + WEIGHT
        return (_standard(weight) or weight) + scales(weight)
    return _standard(name) or name


def _standard(name: str) -> str | None:
    if (place := _PLACE.fullmatch(name)) is None:
        return MODEL.get(name.removeprefix("model."))
    layer, expert, rest = place.groups()
    part = LAYER.get(rest) if expert is None else EXPERT.get(rest)
    return None if part is None else f"model.layers.{layer}.{'mlp.' + expert if expert else ''}{part}"
