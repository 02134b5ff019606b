"""Whether two sides of sparse attention choose the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gguf_mla.forward import indexer
from gguf_mla.forward.attention import unseen
from gguf_mla.forward.choice import Chooser
from verify.measures import Agreement, Sums

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_mla.forward.arrays import Floats, Mask, Numbers
    from gguf_mla.forward.indexer import Index


TIE = 1e-5  # of a query's largest score: float32 sums of some thousand products


class Follower(Chooser):
    """Chooses for its first sequences, `alone` of them; the others attend to what the reference chose for its first.

    These have the reference's input, so a difference of the attention is one of the attention, and `agreement` says how
    far the choices are the same.
    """

    def __init__(self, reference: Chooser, alone: int = 0) -> None:
        super().__init__()
        self.agreement: ChoiceAgreement | None = None
        self._reference, self._alone = reference, alone

    def take(self, indexes: Sequence[Index] | None, top_k: int) -> Sequence[Numbers]:
        """Return the own choice of the first sequences, and for the others the reference's."""
        own, alone = super().take(indexes, top_k), self._alone
        self.agreement = None
        if indexes is not None:
            self.agreement = compare(self._reference, indexes[alone:], own[alone:])
        return [*own[:alone], *self._reference.chosen[: len(own) - alone]]


@dataclass(frozen=True)
class ChoiceAgreement:
    """How far two indexers agree on the same input.

    sets    queries that had to choose, having more tokens before them than they may attend to
    same    of these, how many chose the same tokens, but for ties
    wrong   how many queries chose another number of tokens
    common  the part of the chosen tokens that both chose
    scores  how far the scores are apart
    """

    sets: int
    same: int
    wrong: int
    common: float
    scores: Agreement


def compare(reference: Chooser, indexes: Sequence[Index], chosen: Sequence[Numbers]) -> ChoiceAgreement:
    """Compare choices and scores with the reference's for its first sequences, a block of queries at a time."""
    sums, counts = Sums(), torch.zeros(5, dtype=torch.int64)
    first = slice(len(indexes))
    sides = reference.indexes[first], indexes, reference.chosen[first], chosen
    for ours, theirs, expected, found in zip(*sides, strict=True):
        for block in indexer.blocks(ours):
            scores = indexer.scores(ours, block.start, block.stop)
            seen = scores != -torch.inf
            found_scores = indexer.scores(theirs, block.start, block.stop)
            sums.add(found_scores.where(seen, 0.0), scores.where(seen, 0.0), count=int(seen.sum()))
            counts += _counts(expected[block], found[block], scores).cpu()
    sets, same, wrong, common, every = counts.tolist()
    return ChoiceAgreement(sets, same, wrong, common / every, sums.agreement())


def _counts(expected: Numbers, found: Numbers, scores: Floats) -> Numbers:
    """Return of some queries the sets with a choice, those that are the same, wrong sizes, common and all tokens."""
    ours, theirs = (~unseen(chosen, *scores.shape) for chosen in (expected, found))
    had_to_choose = ours.sum(dim=1) < (scores != -torch.inf).sum(dim=1)
    same = same_choice(expected, found, scores)
    wrong = ours.sum(dim=1) != theirs.sum(dim=1)
    masks = had_to_choose, had_to_choose & same, wrong, ours & theirs, ours
    return torch.stack([mask.sum() for mask in masks])


def same_choice(first: Numbers, second: Numbers, scores: Floats) -> Mask:
    """Return of every query whether two choices [T, K] are the same, given its scores [T, S], bool [T].

    They are if they have as many tokens and those that only one of them has score the same, up to TIE.
    """
    ours, theirs = (~unseen(chosen, *scores.shape) for chosen in (first, second))
    apart = ours ^ theirs
    highest = scores.where(apart, -torch.inf).amax(dim=1)
    lowest = scores.where(apart, torch.inf).amin(dim=1)
    largest = scores.abs().where(scores != -torch.inf, 0.0).amax(dim=1)
    tied = highest - lowest <= TIE * largest  # inf - inf where a token comes after the query, which is not a tie
    return (ours.sum(dim=1) == theirs.sum(dim=1)) & (tied | ~apart.any(dim=1))
