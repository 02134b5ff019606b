"""Level 3: the attention of every layer, vanilla from the reference against another form from the candidate.

Both get the same input, the embeddings of some tokens, so that a difference belongs to the layer itself and only the
attention's own tensors are read. With sparse attention both attend to what the reference chooses; the choices are
compared by themselves.
"""

from __future__ import annotations

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
    from collections.abc import Callable, Iterator

    from gguf_mla.forward.arrays import Ids
    from gguf_mla.forward.attention import Form
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


def compare_attention(
    reference: Weights, candidate: Weights, tokens: Ids, form: Form, types: Callable[[int], str], place: Place = CPU
) -> Iterator[LayerAgreement]:
    """Yield every layer's agreement for token sequences [B, T]; `types` names a layer's coarsest attention type."""
    ours = Pass(reference, place=place)
    follower = Follower(ours.chooser)
    theirs = Pass(candidate, form, follower, place=place)
    hidden = lookup(ours, "token_embd.weight", tokens)
    for layer in range(reference.model.blocks):
        expected = walk.attention(ours, layer, hidden, tokens)
        found = walk.attention(theirs, layer, hidden, tokens)
        yield LayerAgreement(layer, types(layer), agreement(found, expected), follower.agreement)


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
