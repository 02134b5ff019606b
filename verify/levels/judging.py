"""The verdict on weights: a tensor beyond its type's limits is explained by what happened to the file, or blamed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from verify.findings import Finding, Grade
from verify.levels import blame, history, weights
from verify.limits import Stage, allowed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf_mla.forward.tensors import GgufWeights, Weights
    from verify.levels.history import History
    from verify.levels.weights import TensorError
    from verify.limits import Limits

BLAMED = 8  # tensors for which a mistake is looked for; what is wrong with more of them is wrong with the file


@dataclass(frozen=True)
class Judged:
    """A tensor, what its type alone does not explain, and what does."""

    error: TensorError
    finding: Finding | None
    history: History | None

    @property
    def wrong(self) -> bool:
        """Whether nothing explains it."""
        return self.finding is not None and self.history is None


@dataclass
class Judge:
    """Judges tensors one after the other: each is explained once it has been read, and told when all have been.

    histories  what each tensor has gone through, by its name in the file, where its type alone does not explain it
    """

    reference: Weights
    candidate: GgufWeights
    limits: Limits
    histories: dict[str, History] = field(default_factory=dict)
    _told: dict[str, History] = field(default_factory=dict)
    _said: dict[str, list[Finding]] = field(default_factory=lambda: defaultdict(list))
    _blamed: int = 0

    def explained(self, error: TensorError) -> Judged:
        """Return a tensor with what happened to it, if it is beyond its type's limits and something explains that."""
        finding = weights.judge(error, self.limits)
        beyond = finding is not None and not error.special
        return self.taken(error, history.explain(error, self.limits) if beyond else None)

    def taken(self, error: TensorError, found: History | None) -> Judged:
        """Return a tensor of which is known already what happened to it."""
        if found is not None:
            self.histories[error.name] = found
        return Judged(error, weights.judge(error, self.limits), found)

    def tensor(self, judged: Judged) -> Finding | None:
        """Return what is wrong with a tensor; None when it is right, and when `rest` will say what it is like.

        Tensors are told in the order of the file: only the first that are wrong are looked into.
        """
        error, finding, found = judged.error, judged.finding, judged.history
        if finding is None or error.special:
            return finding
        if found is None or error.pair is None:
            return self._blame(error, finding)
        self._told[error.name] = found
        self._said[found.sentence(error.pair)].append(finding)
        return None

    def rest(self) -> Iterator[Finding]:
        """Yield one finding for all tensors that have been quantized twice in the same way."""
        for said, findings in self._said.items():
            first = findings[0]
            if self._told[first.subject].before is not None:
                others = len(findings) - 1
                more = f", like {others} more tensor{'s' if others > 1 else ''}" if others else ""
                yield replace(first, what=said + more, grade=Grade.DIFFERS)

    def warnings(self) -> tuple[str, ...]:
        """Return what the reference is too coarse to tell."""
        coarse = [name for name, found in self._told.items() if found.reference is not None]
        if not coarse:
            return ()
        types = ", ".join(dict.fromkeys(each.reference.type for each in self._told.values() if each.reference))
        near = f"{len(coarse)} tensors are as near to it as its own error allows"
        return (f"The reference is quantized itself ({types}): {near}, and what is finer than that it cannot tell.",)

    def types(self, name: str, own: str) -> tuple[str, ...]:
        """Return the types whose errors a tensor of the file carries."""
        found = self.histories.get(name)
        return tuple(stage.type for stage in found.stages) if found else (own,)

    def _blame(self, error: TensorError, finding: Finding) -> Finding:
        self._blamed += 1
        if self._blamed > BLAMED:
            return finding
        row = self._allowed(error)
        cause = blame.likeliest(error, self.reference, self.candidate, row)
        return finding if cause is None else replace(finding, what=f"{cause}, so {finding.what}")

    def _allowed(self, error: TensorError) -> float:
        """Return what a right row may be off by: by its own type, and by the reference's."""
        own, blocks = Stage(error.type), error.pair.blocks if error.pair else None
        stages = (own,) if blocks is None else (Stage(blocks), own)
        return allowed(stages, self.limits).row
