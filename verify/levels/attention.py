"""Level 3: the attention of every layer, vanilla from the reference against another form from the candidate.

Both get the same input, the embeddings of some tokens, so that a difference belongs to the layer itself and only the
attention's own tensors are read. With sparse attention both attend to what the reference chooses; the choices are
compared by themselves.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_mla.forward import walk
from gguf_mla.forward.layers import Pass, lookup
from gguf_mla.forward.place import CPU
from verify.findings import Finding
from verify.levels.choice import ChoiceAgreement, Follower
from verify.limits import exceeds
from verify.measures import Agreement, agreement

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf_mla.forward.arrays import Floats, Ids
    from gguf_mla.forward.attention import Form
    from gguf_mla.forward.choice import Chooser
    from gguf_mla.forward.place import Place
    from gguf_mla.forward.tensors import Weights
    from verify.limits import Limits

LEVEL = "attention"
TOKENS = 64


@dataclass(frozen=True)
class LayerAgreement:
    """How far a layer's result from the candidate is from the reference's; `type` is its coarsest tensor's.

    `choice` is there for a layer that chooses what to attend to.
    """

    layer: int
    type: str
    measured: Agreement
    choice: ChoiceAgreement | None = None


class Attentions:
    """The attention of both sides over token sequences [B, T]; `types` names a layer's coarsest attention type."""

    def __init__(
        self,
        reference: Weights,
        candidate: Weights,
        tokens: Ids,
        form: Form,
        types: Callable[[int], str],
        place: Place = CPU,
    ) -> None:
        self._ours = Pass(reference, place=place)
        self._follower = Follower(self._ours.chooser)
        self._theirs = Pass(candidate, form, self._follower, place=place)
        self._tokens, self._types = place.ids(tokens), types

    @functools.cached_property
    def _hidden(self) -> Floats:
        return lookup(self._ours, "token_embd.weight", self._tokens)

    def compare(self, layer: int) -> LayerAgreement:
        """Return the agreement of a layer; they are asked for in order."""
        expected = walk.attention(self._ours, layer, self._hidden, self._tokens)
        found = walk.attention(self._theirs, layer, self._hidden, self._tokens)
        choice = None if self._ours.model.attends_to_all(layer) else self._follower.agreement
        return LayerAgreement(layer, self._types(layer), agreement(found, expected), choice)

    @property
    def choosers(self) -> dict[str, Chooser]:
        """What carries the choices of sparse attention from layer to layer, of both sides."""
        return {"ours": self._ours.chooser, "theirs": self._follower}


def judge(result: LayerAgreement, limits: Limits, level: str = LEVEL, what: str = "attention") -> Finding | None:
    """Return what is wrong with a layer, None when it is as its types allow, as far as so many tokens can tell."""
    allowed = limits.of(result.type).layer
    if result.choice is not None and (finding := _judge_choice(result, result.choice, allowed, level)):
        return finding
    if not exceeds(result.measured.least, allowed):
        return None
    return Finding(
        level,
        f"blk.{result.layer}",
        f"the {what} computes something else from the same input: WMAPE",
        f"at most {allowed:.3g} for {result.type}",
        f"{result.measured.wmape:.3g} ± {result.measured.error:.2g}, cosine {result.measured.cosine:.6f}",
    )


def _judge_choice(result: LayerAgreement, choice: ChoiceAgreement, allowed: float, level: str) -> Finding | None:
    subject = f"blk.{result.layer}.indexer"
    if choice.wrong:
        return Finding(level, subject, f"{choice.wrong} queries choose another number of tokens than the reference's")
    if not exceeds(choice.scores.least, allowed):
        return None
    return Finding(
        level,
        subject,
        "the tokens are scored otherwise from the same input: WMAPE",
        f"at most {allowed:.3g} for {result.type}",
        f"{choice.scores.wmape:.3g}, {choice.same} of {choice.sets} choices the same",
    )
