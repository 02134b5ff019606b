"""What a cast to plain floats leaves behind: a quantization_config that no tensor bears out, and scales of nothing.

Whether a source is plain or quantized is told by its tensors. A scale beside a plain weight is either a leftover, or
the weight was cast without being multiplied by it: then its values are those of FP8 itself, which a sample shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.ggtypes.shared import floats
from gguf_mla.sources.formats.plain import plain
from gguf_mla.sources.recognise.reading import FLOATS, examples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gguf_mla.sources.recognise.reading import Reading
    from gguf_mla.sources.safetensors import StoredTensor

SCALES = ("_scale_inv", "_scale")
# How the names of what only quantized weights have end.
MARKS = (
    "_scale_inv", "_scale", "_scale_2", "_packed", "_zero_point", "_g_idx", ".g_idx", ".qweight", ".qzeros", ".scales",
    ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", "_blocks", "_scales",
)  # fmt: skip
SAMPLE = 1 << 15  # values of a weight that are looked at
FP8_STEP, FP8_LARGEST = 2.0**-9, 448.0  # of e4m3: every value is a multiple of the one and at most the other
UNSCALED = 16.0  # what is multiplied by its scale is never so large; what is not reaches 448 in every block


def recognise(reading: Reading) -> Reading:
    """Return the reading without scales of plain weights and without a quantization that nothing bears out."""
    reading = _without_scales(reading)
    stated = reading.config.get("quantization_config")
    if not isinstance(stated, dict) or not stated or not reading.stored:
        return reading
    if any(tensor.dtype not in FLOATS or name.endswith(MARKS) for name, tensor in reading.stored.items()):
        return reading
    kind = f"{stated.get('quant_method')!r:.40}"
    note = f"quantization: config.json says quant_method {kind}, but every tensor is stored as plain floats; read so."
    return reading.configured(quantization_config=None).noted(note)


def scale_of(name: str, stored: Mapping[str, StoredTensor]) -> StoredTensor | None:
    """Return the plain weight that a name is the scale of; None for other names and for weights that need scales."""
    if not name.endswith(SCALES):
        return None
    weight = stored.get(name[: name.rindex("_scale")])
    return weight if weight is not None and weight.dtype in FLOATS else None


def _without_scales(reading: Reading) -> Reading:
    found = {name: weight for name in reading.stored if (weight := scale_of(name, reading.stored)) is not None}
    if not found:
        return reading
    for name, weight in found.items():
        if _is_unscaled(weight):
            raise InputError(
                "is stored as plain floats, and its values are those of FP8 codes not yet multiplied by their scales",
                file=weight.file.name,
                tensor=weight.name,
                found=f"the scales as {name}",
                remedy="Cast the original again with its scales, or convert the original itself",
            )
    note = f"scales: {len(found)} scales belong to weights that are plain floats already; left out: {examples(found)}."
    return reading.without(dict.fromkeys(found, "a scale of a weight that is plain already")).noted(note)


def _is_unscaled(weight: StoredTensor) -> bool:
    if weight.dtype == "F64":
        return False
    rows = max(1, min(weight.rows, SAMPLE // max(1, weight.shape[-1])))
    values: NDArray[np.float32] = floats.to_float32(plain(weight).read(0, rows), weight.dtype)
    if not values.size or not UNSCALED < np.abs(values).max() <= FP8_LARGEST:  # nor is it, of a NaN
        return False
    steps = values / np.float32(FP8_STEP)
    return bool((steps == np.rint(steps)).all())
