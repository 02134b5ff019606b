"""DeepSeek-V4 as it is published: under names of its own, FP8 with scales that are powers of two, experts in 4 bits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.sources.recognise.published import EXPERT, LAYER, MODEL, SCALE, WEIGHT
from gguf_mla.synthetic import storage
from gguf_mla.synthetic.storage import StoredForm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

MODEL_TYPE = "deepseek_v4"
FP8 = tuple(f".self_attn.{name}.weight" for name in ("q_a_proj", "q_b_proj", "kv_proj", "o_a_proj", "o_b_proj"))
FP8_INDEXER, SHARED, EXPERTS, TABLE = ".indexer.q_b_proj.weight", ".shared_experts.", ".experts.", ".tid2eid"
VISION = ".e_score_correction_bias_vl"
F32 = (".fn", ".base", ".scale", ".hc_fn", ".hc_base", ".hc_scale", ".sinks", ".position_bias", "correction_bias")
PUBLISHED = {
    **{other: name for name, other in MODEL.items()},
    **{other: name for name, other in LAYER.items() if name != "attn.norm.weight"},
    **{other: name for name, other in EXPERT.items()},
}
PLACE = re.compile(r"model\.layers\.(\d{1,9})\.(?:mlp\.((?:experts\.\d{1,9}|shared_experts)\.))?(.+)")


def tensors(config: Mapping[str, Any], weights: Mapping[str, tuple[int, ...]]) -> Iterator[StoredForm]:
    """Yield every tensor that is stored of weights under transformers' names."""
    packed = config.get("expert_dtype") == "fp4"
    for name, shape in weights.items():
        if name.endswith(VISION):
            continue  # only a model that also sees has it
        own = published_name(name)
        if name.endswith(TABLE):
            yield StoredForm(own, "I64", shape, name, shape, "table", experts=config["n_routed_experts"])
        elif EXPERTS in name and packed:
            yield from _scaled(storage.mxfp4(own, shape), name, shape, "mxfp4")
        elif name.endswith((*FP8, FP8_INDEXER)) or SHARED in name or EXPERTS in name:
            yield from _scaled(storage.fp8(own, shape, "F8_E8M0"), name, shape, "fp8")
        else:
            yield StoredForm(own, "F32" if name.endswith(F32) else "BF16", shape, name, shape)


def published_name(name: str) -> str:
    """Return the published name of a tensor that transformers names so; KeyError for one without."""
    if (place := PLACE.fullmatch(name)) is None:
        return PUBLISHED[name]
    layer, expert, rest = place.groups()
    return f"layers.{layer}.{'ffn.' + expert if expert else ''}{PUBLISHED[rest]}"


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
