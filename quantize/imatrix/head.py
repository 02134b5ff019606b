"""How well a model predicts a text: the log-probability of every token of the second half of each chunk."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from gguf_mla.forward.place import as_array
from quantize.imatrix.entries import OUTPUT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.forward.arrays import Floats
    from gguf_mla.forward.layers import Pass

    Doubles = NDArray[np.float64]
    Numbers = NDArray[np.int64]


@dataclass
class Perplexity:
    """What is known of the chunks so far: the negative log-probabilities of their scored tokens, [tokens] each."""

    chunks: list[Doubles] = field(default_factory=list)

    def add(self, pass_: Pass, states: Floats, tokens: Numbers) -> None:
        """Score normed states [B, T, hidden] of chunks [B, T], each for the token after its own."""
        half = tokens.shape[1] // 2
        scored, targets = states[:, half:-1], tokens[:, half + 1 :]
        found = surprise(pass_, scored.flatten(0, 1), targets.reshape(-1))
        self.chunks += list(found.reshape(targets.shape))

    def running(self) -> list[float]:
        """Return the perplexity of all tokens up to every chunk, as llama-imatrix prints it."""
        sums = np.cumsum([chunk.sum() for chunk in self.chunks])
        counts = np.cumsum([chunk.size for chunk in self.chunks])
        return [_power(value) for value in (sums / np.maximum(counts, 1)).tolist()]

    def estimate(self) -> tuple[float, float] | None:
        """Return the perplexity and its standard error; None where too few tokens were scored."""
        values = np.concatenate(self.chunks) if self.chunks else np.zeros(0)
        if values.size < 2:
            return None
        mean = _power(float(values.mean()))
        return mean, mean * float(values.std()) / math.sqrt(values.size - 1)


def _power(x: float) -> float:
    return math.exp(x) if x < math.log(np.finfo(float).max) else math.inf


def surprise(pass_: Pass, states: Floats, targets: Numbers) -> Doubles:
    """Return -ln of the probability of targets [N] after states [N, hidden]; the vocabulary comes in pieces."""
    wanted = pass_.place.ids(targets)
    total = torch.full(wanted.shape, -torch.inf, dtype=torch.float64, device=states.device)
    hit = torch.zeros_like(total)
    for first, logits in pass_.pieces(states, OUTPUT):
        column = wanted - first
        inside = (column >= 0) & (column < logits.shape[1])
        picked = logits.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        hit = torch.where(inside, picked.double(), hit)
        total = torch.logaddexp(total, logits.logsumexp(dim=1).double())
    found: Doubles = as_array(total - hit)
    return found
