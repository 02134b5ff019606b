"""How far two right float32 computations of one model may be apart: limits from its sizes instead of one machine's.

Every product that is added to a sum rounds by at most 2^-24 of what the sum has reached; n roundings that are as
independent as they are here come to √n of one. From the token to its logits they follow each other through the layers,
whose norms keep the relative error: a hidden state is off by √n · 2^-24 of its length. Two computations are compared,
and twice that is left for what is not a sum (exponentials, and angles of late positions): 4 · √n · 2^-24.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gguf_mla.forward.model import Model

STEP = 2.0**-24  # half the distance of float32 numbers around 1


def products(model: Model, tokens: int) -> int:
    """Return how many products the logits after so many tokens have added up, one after the other."""
    attention = model.attention_products(tokens)
    dense, experts = model.hidden + model.ffn, model.hidden + model.expert_ffn + model.routing.used
    feed_forward = model.dense_layers * dense + (model.layers - model.dense_layers) * experts
    return model.layers * attention + feed_forward + model.hidden


def relative(model: Model, tokens: int) -> float:
    """Return how far two computations of a hidden state, or of logits around their mean, may be apart, relatively."""
    return float(4 * products(model, tokens) ** 0.5 * STEP)


def largest(model: Model, tokens: int, spread: float, count: int) -> float:
    """Return the largest |difference| that so many logits with this standard deviation, or log-probabilities, may have.

    The largest of N normal errors is √(2 ln N) of their standard deviation.
    """
    return relative(model, tokens) * spread * math.sqrt(2 * math.log(count))
