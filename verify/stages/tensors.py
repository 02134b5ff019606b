"""The levels that go through all tensors: their values, their bytes."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError
from verify import noted
from verify.comparison import pairs
from verify.findings import Finding, Grade
from verify.levels import exact, second_opinion, weights
from verify.levels.judging import Judge
from verify.sections import Kind
from verify.stages.base import Tensors

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from concurrent.futures import ThreadPoolExecutor

    from gguf_mla.container.reader import GgufTensor
    from verify.job import Proof
    from verify.journal import Notes
    from verify.levels.exact import Sameness, Way
    from verify.levels.judging import Judged
    from verify.sections import Section


class Weights(Tensors):
    """Every tensor, value by value."""

    level = weights.LEVEL

    def __init__(self, proof: Proof, journal: Notes) -> None:
        super().__init__(proof, journal)
        self._judge = Judge(self.reference, self.candidate.weights, proof.request.limits)
        self._seen: dict[str, list[Judged]] = {}
        self._opinions: dict[str, Finding | None] = {}
        self._misread: list[Finding] = []

    def run(self, section: Section) -> Iterator[int]:
        """Compare the tensors of a section; whether the reference is read rightly is asked before the first."""
        if section.kind is Kind.EMBEDDINGS:
            self._ask()
        yield from super().run(section)
        self.proof.candidate = self.candidate.gone_through(self._judge.types)

    def take(self, section: Section, found: Any) -> None:
        """Take over the tensors of a section."""
        super().take(section, found)
        self.proof.candidate = self.candidate.gone_through(self._judge.types)

    def _ask(self) -> None:
        if misread := second_opinion.of_reference(self.reference, self.proof.request.threads):
            self._misread = [replace(finding, grade=Grade.CANNOT_TELL) for finding in misread]
            what = (
                f"two libraries read {len(misread)} of the reference's tensors otherwise, so nothing can be said of a "
                "file"
            )
            raise InputError(what, file=self.proof.request.reference, remedy="Report it: one of the two is wrong")

    def compare(self, tensor: GgufTensor, pool: ThreadPoolExecutor) -> Generator[int, None, Any]:
        """Compare a tensor with all that it stands for."""
        found = self._seen.setdefault(tensor.name, [])
        for pair in pairs(self.reference, self.candidate.weights, tensor):
            error = yield from weights.compare(pair, pool)
            found.append(self._judge.explained(error))
        self._settle(tensor)
        return [noted.of_judged(judged) for judged in found]

    def take_tensor(self, tensor: GgufTensor, known: Any) -> None:
        """Take over the errors of a tensor, and what explains them."""
        every = zip(pairs(self.reference, self.candidate.weights, tensor), known, strict=True)
        self._seen[tensor.name] = [
            self._judge.taken(noted.error_of(each, pair), noted.history_of(each)) for pair, each in every
        ]
        self._settle(tensor)

    def _settle(self, tensor: GgufTensor) -> None:
        opinion = self._opinions[tensor.name] = second_opinion.of_gguf(tensor)
        self.wrong |= opinion is not None or any(judged.wrong for judged in self._seen[tensor.name])

    def so_far(self) -> Iterator[Finding | None]:
        """Tell of the tensors in the order of the file."""
        yield from self._misread
        for tensor in self.candidate.weights.held:
            for judged in self._seen.get(tensor.name, ()):
                self.proof.tensors.append(judged.error)
                yield self._judge.tensor(judged)

    def end(self) -> Iterator[Finding | None]:
        """Tell what several tensors are like, and what another library reads otherwise."""
        yield from self._judge.rest()
        self.proof.warnings += self._judge.warnings()
        yield from (self._opinions[tensor.name] for tensor in self.candidate.weights.held)


class Exact(Tensors):
    """The bytes of every tensor."""

    level = exact.LEVEL

    def __init__(self, proof: Proof, journal: Notes) -> None:
        super().__init__(proof, journal)
        self._seen: dict[str, list[Sameness]] = {}
        self._best: dict[str, Way] = {}

    def compare(self, tensor: GgufTensor, pool: ThreadPoolExecutor) -> Generator[int, None, Any]:
        """Compare the bytes of a tensor."""
        found, file = self._seen.setdefault(tensor.name, []), self.candidate.weights
        for pair in pairs(self.reference, file, tensor):
            encoder = exact.Encoder(pair, tensor, self.reference, file, self.proof.imatrix)
            same = yield from exact.compare(encoder, pool, self._best.get(tensor.type))
            self._best[tensor.type] = same.way
            found.append(same)
        return [asdict(same) for same in found]

    def take_tensor(self, tensor: GgufTensor, known: Any) -> None:
        """Take over how much of a tensor is the encoder's."""
        self._seen[tensor.name] = [noted.sameness_of(each) for each in known]
        self._best[tensor.type] = self._seen[tensor.name][-1].way

    def so_far(self) -> Iterator[Finding | None]:
        """Give the proof the tensors in the order of the file."""
        for tensor in self.candidate.weights.held:
            self.proof.exact += self._seen.get(tensor.name, ())
        return iter(())

    def end(self) -> Iterator[Finding | None]:
        """Tell what is not the encoder's."""
        return exact.judge(self.proof.exact)
