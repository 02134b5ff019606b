"""Level 4: what both models say about a text, in the quantities that llama-perplexity prints.

The text is cut into chunks of `context` tokens; the second half of each is scored, so that every score has at least
half a context before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.forward import layers, prediction, walk
from gguf_mla.forward.attention import FORMS
from gguf_mla.forward.choice import Chooser
from verify.findings import Finding
from verify.levels import kernels
from verify.levels.attention import LayerAgreement
from verify.levels.choice import Follower
from verify.measures import Agreement, agreement

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gguf_mla.forward.attention import Form
    from gguf_mla.forward.tensors import Weights

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int64]
    States = tuple[Floats, Floats]  # of the reference and of the candidate

LEVEL = "logits"
PERCENTILES = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0)


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.6g} ± {self.error:.2g}"


@dataclass(frozen=True)
class Scores:
    """What is known of every scored token, [N] each.

    reference, candidate  log-probability of the token that follows
    kld                   divergence of the candidate's distribution from the reference's, in nats
    same_top              whether the likeliest token is the same
    """

    reference: NDArray[Any]
    candidate: NDArray[Any]
    kld: NDArray[Any]
    same_top: NDArray[Any]

    def perplexities(self) -> tuple[Estimate, Estimate]:
        """Return exp(-mean log-probability) of reference and candidate."""
        return _exponential(_mean(-self.reference)), _exponential(_mean(-self.candidate))

    def ratio(self) -> Estimate:
        """Return ln of the candidate's perplexity by the reference's; the tokens are the same, so they are paired."""
        return _mean(self.reference - self.candidate)

    def divergence(self) -> Estimate:
        """Return the mean KL divergence in nats."""
        return _mean(self.kld)

    def percentiles(self) -> dict[str, float]:
        """Return the spread of the divergence: percentiles and extremes."""
        found = zip(PERCENTILES, np.percentile(self.kld, PERCENTILES), strict=True)
        named = {f"{q:g} %": float(value) for q, value in found}
        return {"max": float(self.kld.max()), **named, "min": float(self.kld.min())}

    def probability_shift(self) -> tuple[Estimate, Estimate]:
        """Return mean and RMS of Δp, the change of the probability of what follows."""
        shift = np.exp(self.candidate) - np.exp(self.reference)
        square = _mean(shift * shift)
        root = math.sqrt(square.value)
        return _mean(shift), Estimate(root, square.error / (2 * root) if root else 0.0)

    def top_agreement(self) -> Estimate:
        """Return how often the likeliest token is the same."""
        return _mean(self.same_top.astype(float))


def _mean(x: NDArray[Any]) -> Estimate:
    error = x.std(ddof=1) / math.sqrt(x.size) if x.size > 1 else math.inf
    return Estimate(float(x.mean()), float(error))


def _exponential(x: Estimate) -> Estimate:
    value = math.exp(x.value)
    return Estimate(value, value * x.error)


def chunks(tokens: Numbers, context: int, most: int, bos: int | None) -> Numbers:
    """Return at most so many chunks [B, context]; their first token is bos where the model wants one."""
    context = min(context, tokens.size)
    count = min(tokens.size // context, most)
    cut = tokens[: count * context].reshape(count, context).copy()
    if bos is not None:
        cut[:, 0] = bos
    return cut


class _Both:
    """Both models, layer by layer.

    The candidate's layers are read once for two inputs: its own hidden states, and the reference's to judge the layer.
    """

    def __init__(self, reference: Weights, candidate: Weights, form: Form) -> None:
        self.reference, self.candidate, self.form = reference, candidate, form
        self.ours = Chooser()
        self.theirs = Follower(self.ours)

    def run(self, layer: int, hidden: Floats, own: Floats, followed: Floats) -> tuple[Floats, Floats, Floats]:
        """Return what is behind a layer: of the reference, of the candidate's own states, and of the followed ones."""
        after = walk.run_layer(self.reference, layer, hidden, FORMS["vanilla"], self.ours)
        inputs = np.concatenate([own, followed])
        own, judged = np.split(walk.run_layer(self.candidate, layer, inputs, self.form, self.theirs), 2)
        return after, own, judged

    def predict(self, layer: int, states: States, tokens: Numbers) -> tuple[States, Agreement]:
        """Return the states of both sides behind a layer of multi-token prediction, and its agreement on the same."""
        ours, theirs = states
        entered = prediction.enter(self.reference, layer, ours, tokens)
        inputs = np.concatenate([theirs, ours]), np.concatenate([tokens, tokens])
        own, followed = np.split(prediction.enter(self.candidate, layer, *inputs), 2)
        after, own, judged = self.run(layer, entered, own, followed)
        left = prediction.leave(self.reference, layer, after), prediction.leave(self.candidate, layer, own)
        return left, agreement(judged, after)

    def score(self, ours: Floats, theirs: Floats, tokens: Numbers, head: str = "output.weight") -> Scores:
        """Score normed states [B, T, hidden] of both sides, each for the token behind its own."""
        sides = (self.reference, _half(ours), head), (self.candidate, _half(theirs), head)
        return _score(*sides, _targets(tokens))


def compare_logits(
    reference: Weights,
    candidate: Weights,
    tokens: Numbers,
    form: Form,
    types: Callable[[int], str],
    progress: Callable[[int], object],
) -> tuple[list[LayerAgreement], list[Scores]]:
    """Run both models over chunks [B, T].

    Return every layer's agreement on the reference's input, and the scores: of the next token, and for every layer of
    multi-token prediction of the one behind that.
    """
    both = _Both(reference, candidate, form)
    layers: list[LayerAgreement] = []
    hidden, own = walk.embed(reference, tokens), walk.embed(candidate, tokens)
    for layer in range(reference.model.layers):
        after, own, judged = both.run(layer, hidden, own, hidden)
        measured = agreement(judged - hidden, after - hidden)
        layers.append(LayerAgreement(layer, types(layer), measured, both.theirs.agreement))
        hidden = after
        progress(1)
    states = walk.final_norm(reference, hidden), walk.final_norm(candidate, own)
    scores = [both.score(*states, tokens)]
    for layer in range(reference.model.layers, reference.model.blocks):
        states, measured = both.predict(layer, states, tokens)
        layers.append(LayerAgreement(layer, types(layer), measured, both.theirs.agreement))
        tokens = tokens[:, 1:]
        scores.append(both.score(*states, tokens, prediction.head(layer)))
        progress(1)
    return layers, scores


def _half(states: Floats) -> Floats:
    """Return the states of the second half of every chunk but its last token, [N, hidden]."""
    return states[:, states.shape[1] // 2 : -1].reshape(-1, states.shape[-1])


def _targets(tokens: Numbers) -> Numbers:
    return tokens[:, tokens.shape[1] // 2 + 1 :].reshape(-1)


def _score(reference: tuple[Weights, Floats, str], candidate: tuple[Weights, Floats, str], targets: Numbers) -> Scores:
    """Go through the vocabulary once, a piece at a time; a side is its weights, its states and its head's name."""
    count = len(targets)
    state, best = np.zeros((count, 5)), np.zeros((count, 2), np.int64)
    state[:, (0, 2)] = -np.inf
    hit = np.zeros((2, count))
    pieces = zip(layers.logits(*reference), layers.logits(*candidate), strict=True)
    for (first, ours), (_, theirs) in pieces:
        kernels.add_logits(ours, theirs, first, state, best)
        inside = np.nonzero((targets >= first) & (targets < first + ours.shape[1]))[0]
        for side, logits in enumerate((ours, theirs)):
            hit[side, inside] = logits[inside, targets[inside] - first]
    log_sums = state[:, 0] + np.log(state[:, 1]), state[:, 2] + np.log(state[:, 3])
    kld = state[:, 4] / state[:, 1] - log_sums[0] + log_sums[1]
    return Scores(hit[0] - log_sums[0], hit[1] - log_sums[1], np.maximum(kld, 0), best[:, 0] == best[:, 1])


def judge(scores: Scores, allowed: float) -> Finding | None:
    """Return what is wrong with the distribution, None when it is as the types of the file allow."""
    found = scores.divergence()
    if found.value <= allowed:
        return None
    what = "are not the reference's: mean KL divergence"
    return Finding(LEVEL, "the predictions", what, f"at most {allowed:.3g} for its types", str(found))
