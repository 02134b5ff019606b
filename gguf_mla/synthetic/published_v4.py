"""DeepSeek-V4 as it is published: under names of its own, FP8 with scales that are powers of two, experts in 4 bits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.sources.recognise.published import EXPERT, LAYER, MODEL, PREDICTION, SCALE, WEIGHT
from gguf_mla.sources.side_by_side import FIRST, SECOND, WHOLE
from gguf_mla.synthetic import storage
from gguf_mla.synthetic.storage import StoredForm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

MODEL_TYPE = "deepseek_v4"
FP8 = tuple(f".self_attn.{name}.weight" for name in ("q_a_proj", "q_b_proj", "kv_proj", "o_a_proj", "o_b_proj"))
HALVES = (FIRST, SECOND)
FP8_INDEXER, SHARED, EXPERTS, TABLE = ".indexer.q_b_proj.weight", ".shared_experts.", ".experts.", ".tid2eid"
VISION = ".e_score_correction_bias_vl"
F32 = (".fn", ".base", ".scale", ".hc_fn", ".hc_base", ".hc_scale", ".sinks", ".position_bias", "correction_bias")
PUBLISHED = {
    **{other: name for name, other in MODEL.items()},
    **{other: name for name, other in LAYER.items() if name != "attn.norm.weight"},
    **{other: name for name, other in EXPERT.items()},
    **{other: name for name, other in PREDICTION.items()},
    **{name: name for name in ("enorm.weight", "hnorm.weight")},
}
PLACE = re.compile(r"model\.layers\.(\d{1,9})\.(?:mlp\.((?:experts\.\d{1,9}|shared_experts)\.))?(.+)")


def tensors(config: Mapping[str, Any], weights: Mapping[str, tuple[int, ...]]) -> Iterator[StoredForm]:
    """Yield every tensor that is stored of weights under transformers' names."""
    packed, layers = config.get("expert_dtype") == "fp4", config["num_hidden_layers"]
    for name, shape in _halved(weights):
        if name.endswith(VISION):
            continue  # only a model that also sees has it
        own = published_name(name, layers)
        if name.endswith(TABLE):
            yield StoredForm(own, "I64", shape, name, shape, "table", experts=config["n_routed_experts"])
        elif EXPERTS in name and packed:
            yield from _scaled(storage.mxfp4(own, shape), name, shape, "mxfp4")
        elif name.endswith((*FP8, *HALVES, FP8_INDEXER)) or SHARED in name or EXPERTS in name:
            yield from _scaled(storage.fp8(own, shape, "F8_E8M0"), name, shape, "fp8")
        else:
            yield StoredForm(own, "F32" if name.endswith(F32) else "BF16", shape, name, shape)


def _halved(weights: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield weights as they are published: eh_proj as its two halves."""
    for name, shape in weights.items():
        halves = [name.replace(WHOLE, half) for half in HALVES] if name.endswith(WHOLE) else []
        yield from ((half, (shape[0], shape[1] // 2)) for half in halves)
        if not halves:
            yield name, shape


def published_name(name: str, layers: int) -> str:
    """Return the published name of a tensor that transformers names so, of a model of so many layers.

    KeyError for one without.
    """
    if (place := PLACE.fullmatch(name)) is None:
        return PUBLISHED[name]
    layer, expert, rest = int(place[1]), place[2], place[3]
    at = f"layers.{layer}." if layer < layers else f"mtp.{layer - layers}."
    return f"{at}{'ffn.' + expert if expert else ''}{PUBLISHED[rest]}"


def _scaled(
    parts: tuple[storage.Part, storage.Part], base: str, whole: tuple[int, ...], form: str
) -> Iterator[StoredForm]:
    codes, (_, dtype, shape) = parts
    yield StoredForm(*codes, base, whole, form)
    yield StoredForm(codes[0].removesuffix(WEIGHT) + SCALE, dtype, shape, base, whole, f"{form} scales")


def table(tensor: StoredForm) -> NDArray[np.int64]:
    """Return which experts a token takes by its id, no expert twice, int64 [tokens, experts of a token]."""
    tokens, used = np.ogrid[: tensor.shape[0], : tensor.shape[1]]
    layer = int(tensor.base.split(".")[2])
    step = 1 + tokens // tensor.experts % (tensor.experts // tensor.shape[1])
    return np.asarray((tokens + layer + used * step) % tensor.experts, np.int64)
