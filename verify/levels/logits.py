"""Level 4: what both models say about a text, in the quantities that llama-perplexity prints.

The text is cut into chunks of `context` tokens; the second half of each is scored, so that every score has at least
half a context before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from gguf_mla.forward import prediction, walk
from gguf_mla.forward.layers import Pass
from gguf_mla.forward.place import CPU
from verify.findings import Finding, Grade
from verify.levels.attention import LayerAgreement
from verify.levels.choice import Follower
from verify.limits import exceeds
from verify.measures import SIGNIFICANT, agreement
from verify.sections import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gguf_mla.forward.architecture import State
    from gguf_mla.forward.arrays import Floats, Numbers
    from gguf_mla.forward.attention import Form
    from gguf_mla.forward.choice import Chooser
    from gguf_mla.forward.place import Place
    from gguf_mla.forward.tensors import Weights
    from verify.measures import Agreement
    from verify.sections import Section

    Ids = NDArray[np.int64]

LEVEL = "logits"
LARGEST_LOGARITHM = 709.0  # of a float64
SCORED = 1 << 16  # logits that are taken in at a time, in float64: about what a core's cache holds
JUDGED = 512  # tokens by which a layer is judged: whole chunks, one at least; more would tell little more
LEAST_SCORED = 64  # tokens; the mean of fewer hangs on one or two of them, and so does its standard error
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
    vocabulary            how many tokens there are
    """

    reference: NDArray[Any]
    candidate: NDArray[Any]
    kld: NDArray[Any]
    same_top: NDArray[Any]
    vocabulary: int | None = None

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

    def knows_the_text(self) -> bool:
        """Whether the reference predicts the tokens better than chance does, significantly."""
        if self.vocabulary is None:
            return True
        found = _mean(-self.reference)
        return found.value + SIGNIFICANT * found.error < math.log(self.vocabulary)

    def top_agreement(self) -> Estimate:
        """Return how often the likeliest token is the same."""
        return _mean(self.same_top.astype(float))


def _mean(x: NDArray[Any]) -> Estimate:
    error = x.std(ddof=1) / math.sqrt(x.size) if x.size > 1 else math.inf
    return Estimate(float(x.mean()), float(error))


def _exponential(x: Estimate) -> Estimate:
    value = math.exp(x.value) if x.value < LARGEST_LOGARITHM else math.inf
    return Estimate(value, value * x.error)


def chunks(tokens: Ids, context: int, most: int, bos: int | None) -> Ids:
    """Return at most so many chunks [B, context]; their first token is bos where the model wants one."""
    context = min(context, tokens.size)
    count = min(tokens.size // context, most)
    cut = tokens[: count * context].reshape(count, context).copy()
    if bos is not None:
        cut[:, 0] = bos
    return cut


class Passes:
    """Both models over chunks of tokens [B, T], a section after the other; `types` names a layer's coarsest type.

    The candidate's layers are read once for two inputs: its own hidden states, and those of the reference's first
    JUDGED tokens to judge the layer.

    layers  how far each layer agrees on the reference's input
    scores  of the next token, and for every layer of multi-token prediction of the one after that
    states  what goes on to the next section, of the reference and of the candidate
    """

    def __init__(
        self,
        reference: Weights,
        candidate: Weights,
        tokens: Ids,
        form: Form,
        types: Callable[[int], str],
        place: Place = CPU,
    ) -> None:
        self.reference = Pass(reference, place=place)
        self.follower = Follower(self.reference.chooser, len(tokens))
        self.candidate = Pass(candidate, form, self.follower, place=place)
        self.tokens, self._types = place.ids(tokens), types
        self._judged = slice(max(1, JUDGED // tokens.shape[1]))  # of the chunks
        self.layers: list[LayerAgreement] = []
        self.scores: list[Scores] = []
        self.states: tuple[State, State] | None = None

    def run(self, section: Section) -> None:
        """Go through the next section."""
        steps = {
            Kind.EMBEDDINGS: self._embed, Kind.LAYER: self._layer, Kind.HEAD: self._finish,
            Kind.PREDICTION: self._predict,
        }  # fmt: skip
        steps[section.kind](section.layer)

    @property
    def choosers(self) -> dict[str, Chooser]:
        """What carries the choices of sparse attention from layer to layer, of both sides."""
        return {"ours": self.reference.chooser, "theirs": self.follower}

    def before(self) -> tuple[State, State]:
        """Return what the next section begins with, of the reference and of the candidate."""
        assert self.states is not None  # noqa: S101 - a model begins with its embeddings
        return self.states

    def _embed(self, _layer: int) -> None:
        self.states = walk.embed(self.reference, self.tokens), walk.embed(self.candidate, self.tokens)

    def _finish(self, _layer: int) -> None:
        ours, theirs = self.before()
        self.scores.append(
            self.score(walk.finish(self.reference, ours), walk.finish(self.candidate, theirs), self.tokens)
        )
        self.states = prediction.begin(self.reference, ours), prediction.begin(self.candidate, theirs)

    def _layer(self, layer: int) -> None:
        state, own = self.before()
        entered = state[self._judged]
        after, own, judged = self.both(layer, state, own, entered, self.tokens)
        self._compared(layer, agreement(judged - entered, after[self._judged] - entered))
        self.states = after, own

    def _predict(self, layer: int) -> None:
        """Go from the states before a layer of multi-token prediction to those after it, and score what it predicts."""
        ours, theirs = self.before()
        tokens = self.tokens[:, layer - self.reference.model.layers :]
        entered = prediction.enter(self.reference, layer, ours, tokens)
        inputs = torch.cat([theirs, ours[self._judged]]), torch.cat([tokens, tokens[self._judged]])
        own, followed = prediction.enter(self.candidate, layer, *inputs).tensor_split([len(tokens)])
        after, own, judged = self.both(layer, entered, own, followed, tokens[:, 1:])
        self.states = prediction.leave(self.reference, layer, after), prediction.leave(self.candidate, layer, own)
        self._compared(layer, agreement(judged, after[self._judged]))
        sides = zip((self.reference, self.candidate), self.states, strict=True)
        ours, theirs = (prediction.read(pass_, layer, states) for pass_, states in sides)
        self.scores.append(self.score(ours, theirs, tokens[:, 1:], prediction.head(layer)))

    def both(
        self, layer: int, state: State, own: State, followed: State, tokens: Numbers
    ) -> tuple[State, State, State]:
        """Return the states after a layer: the reference's, the candidate's own, and its answer to the followed."""
        after = walk.run_layer(self.reference, layer, state, tokens)
        inputs = torch.cat([own, followed]), torch.cat([tokens, tokens[: len(followed)]])
        own, judged = walk.run_layer(self.candidate, layer, *inputs).tensor_split([len(own)])
        return after, own, judged

    def _compared(self, layer: int, measured: Agreement) -> None:
        choice = None if self.reference.model.attends_to_all(layer) else self.follower.agreement
        self.layers.append(LayerAgreement(layer, self._types(layer), measured, choice))

    def score(self, ours: Floats, theirs: Floats, tokens: Numbers, head: str = "output.weight") -> Scores:
        """Score normed states [B, T, hidden] of both sides, each for the token after its own."""
        sides = (self.reference, _half(ours), head), (self.candidate, _half(theirs), head)
        return replace(_score(*sides, _targets(tokens)), vocabulary=self.reference.model.vocab)


def _half(states: Floats) -> Floats:
    """Return the states of the second half of every chunk but its last token, [N, hidden]."""
    return states[:, states.shape[1] // 2 : -1].reshape(-1, states.shape[-1])


def _targets(tokens: Numbers) -> Numbers:
    return tokens[:, tokens.shape[1] // 2 + 1 :].reshape(-1)


class _Side(NamedTuple):
    """What one side says of N tokens, as far as a part of the vocabulary tells, float64 [N] each.

    peak   the largest logit
    total  Σ exp(logit - peak)
    best   the likeliest token, int64
    hit    the logit of the token that follows; 0 where that is in another part
    """

    peak: Floats
    total: Floats
    best: Numbers
    hit: Floats

    @classmethod
    def of(cls, logits: Floats, targets: Numbers, first: int) -> tuple[_Side, Floats]:
        """Return this for logits [N, rows] of the tokens from `first` on, and exp(logit - peak)."""
        peak, best = logits.max(dim=1)
        powers, column = torch.exp(logits - peak[:, None]), targets - first
        picked = logits.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        inside = (column >= 0) & (column < logits.shape[1])
        return cls(peak, powers.sum(dim=1), first + best, torch.where(inside, picked, 0.0)), powers

    def joined(self, other: _Side) -> tuple[_Side, Floats, Floats]:
        """Return this with another part, and what sums of exp(logit - peak) of the two are to be multiplied with."""
        peak = torch.maximum(self.peak, other.peak)
        ours, theirs = torch.exp(self.peak - peak), torch.exp(other.peak - peak)
        best = torch.where(other.peak > self.peak, other.best, self.best)
        return _Side(peak, self.total * ours + other.total * theirs, best, self.hit + other.hit), ours, theirs


class _Part(NamedTuple):
    """What both sides say; cross: Σ exp(logit - peak) · (logit - the candidate's logit) of the reference, [N]."""

    reference: _Side
    candidate: _Side
    cross: Floats

    @classmethod
    def of(cls, expected: Floats, found: Floats, targets: Numbers, first: int) -> _Part:
        """Return this for logits [N, rows] of both, a few tokens at a time."""
        step = max(1, SCORED // expected.shape[1])
        pieces = zip(expected.split(step), found.split(step), targets.split(step), strict=True)
        parts = [cls._of_some(r.double(), c.double(), wanted, first) for r, c, wanted in pieces]
        references, candidates, cross = zip(*parts, strict=True)
        ours, theirs = (_Side(*map(torch.cat, zip(*side, strict=True))) for side in (references, candidates))
        return cls(ours, theirs, torch.cat(cross))

    @classmethod
    def _of_some(cls, expected: Floats, found: Floats, targets: Numbers, first: int) -> _Part:
        ours, powers = _Side.of(expected, targets, first)
        theirs, _ = _Side.of(found, targets, first)
        return cls(ours, theirs, (powers * (expected - found)).sum(dim=1))

    def joined(self, other: _Part) -> _Part:
        """Return this with another part of the vocabulary."""
        reference, ours, theirs = self.reference.joined(other.reference)
        candidate, _, _ = self.candidate.joined(other.candidate)
        return _Part(reference, candidate, self.cross * ours + other.cross * theirs)


def _score(reference: tuple[Pass, Floats, str], candidate: tuple[Pass, Floats, str], targets: Numbers) -> Scores:
    """Go through the vocabulary once, some pieces side by side; a side is its pass, its states and its head's name."""

    def part(rows: slice) -> _Part:
        expected, found = (pass_.part(states, head, rows) for pass_, states, head in (reference, candidate))
        return _Part.of(expected, found, targets, rows.start)

    pass_, _, head = reference
    seen = reduce(_Part.joined, pass_.place.side_by_side(part, pass_.cuts(head)))
    ours, theirs = seen.reference, seen.candidate
    whole = [side.peak + side.total.log() for side in (ours, theirs)]
    kld = (seen.cross / ours.total - whole[0] + whole[1]).clamp(min=0)
    return Scores(
        (ours.hit - whole[0]).numpy(force=True),
        (theirs.hit - whole[1]).numpy(force=True),
        kld.numpy(force=True),
        (ours.best == theirs.best).numpy(force=True),
    )


def judge(scores: Scores, allowed: float) -> Finding | None:
    """Return what is wrong with the distribution, None when it is as the types of the file allow.

    A mean is beyond the limit when it is so by two of its standard errors. The limits are of trained models that read
    what they were trained for: where the reference itself predicts no better than chance (random weights, random
    tokens), a last bit decides, and the divergence is not judged; nor is that of less than LEAST_SCORED tokens.
    """
    found, subject, count = scores.divergence(), "the predictions", scores.kld.size
    if not np.isfinite([scores.reference, scores.candidate, scores.kld]).all():
        return Finding(LEVEL, subject, "are not the reference's: a probability is not a number")
    what = f"mean KL divergence of {count} tokens"
    told = f"{found}, at most {allowed:.3g} for its types"
    if not scores.knows_the_text():
        why, remedy = "is not judged, the reference predicts them no better than chance", "A text that it knows"
    elif count < LEAST_SCORED:
        why, remedy = f"is not judged, which takes {LEAST_SCORED}", "A longer text, or more --context or --chunks,"
    elif exceeds(found.value - SIGNIFICANT * found.error, allowed):
        what = "are not the reference's: mean KL divergence"
        return Finding(LEVEL, subject, what, f"at most {allowed:.3g} for its types", str(found))
    else:
        return None
    return Finding(LEVEL, subject, f"{what} {why}", None, told, Grade.CANNOT_TELL, f"{remedy} would tell")
