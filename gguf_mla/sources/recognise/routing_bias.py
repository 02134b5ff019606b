"""A correction bias of the router that lost its precision when a model was saved again: originals have it in F32.

Its values lie close together far from zero (around 7 in DeepSeek-V3), where BF16 has steps of 1/32: experts that the
original tells apart get the same bias, and other experts are chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.files.bounds import EXPERTS

if TYPE_CHECKING:
    from gguf_mla.sources.recognise.reading import Reading

NAME = ".e_score_correction_bias"
SHORT = ("BF16", "F16")


def recognise(reading: Reading) -> Reading:
    """Return the reading with a note where correction biases are stored in 16 bits."""
    short = [tensor for name, tensor in reading.stored.items() if name.endswith(NAME) and tensor.dtype in SHORT]
    if not short:
        return reading
    first = short[0]
    said = ""
    if first.nbytes <= 2 * EXPERTS:
        values = first.read().view(np.uint16)
        said = f" (the {values.size} values of {first.name} are {np.unique(values).size} different ones)"
    others = f" and {len(short) - 1} more are" if short[1:] else " is"
    return reading.noted(
        f"routing bias: {first.name}{others} stored as {first.dtype}, the original has F32{said}: tokens are "
        "routed to other experts. Take these tensors from the original checkpoint."
    )
