"""The levels that run a forward pass: attention, logits, and a real engine beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.forward.architecture import architecture_of
from gguf_mla.forward.tensors import LEGACY
from verify import noted
from verify.levels import attention, engine, logits
from verify.stages.base import Layers, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from verify.findings import Finding
    from verify.job import Proof
    from verify.journal import Notes
    from verify.sections import Section
    from verify.stages.base import Arrays


class Attention(Layers):
    """The attention of every layer by itself."""

    level = attention.LEVEL

    def __init__(self, proof: Proof, journal: Notes) -> None:
        super().__init__(proof, journal)
        tokens, weights = self.tokens[:1, : attention.TOKENS], self.candidate.weights
        self._attends = (*(f"{name}.weight" for name in architecture_of(weights.model).attends), LEGACY)
        self._sides = attention.Attentions(self.reference, weights, tokens, proof.form, self._type, proof.place)

    def _names(self, layer: int) -> list[str]:
        return [f"blk.{layer}.{name}" for name in self._attends]

    def _type(self, layer: int) -> str:
        return self.candidate.coarsest(self._names(layer), self.proof.request.limits)

    def nbytes(self, section: Section) -> int:
        """Return how many bytes the matrices of a layer's attention have."""
        names = set(self._names(section.layer))
        return sum(tensor.nbytes for tensor in self.tensors[section] if tensor.name in names)

    def run(self, section: Section) -> Iterator[int]:
        """Compare the attention of a layer."""
        if section.layer >= 0:
            self.compared.append(self._sides.compare(section.layer))
            self.wrong |= any(self.judged())
        yield self.nbytes(section)

    def state(self) -> Arrays:
        """Return what a layer that does not choose attends to."""
        return noted.of_choosers(self._sides.choosers)

    def restore(self, state: Arrays) -> None:
        """Take over what was chosen."""
        noted.put_back(state, self._sides.choosers, self.proof.place)

    def judged(self) -> Iterator[Finding | None]:
        """Yield what is wrong with the attention of the layers."""
        return (attention.judge(result, self.proof.request.limits) for result in self.compared)

    def so_far(self) -> Iterator[Finding | None]:
        """Tell of the layers."""
        self.proof.attention = self.compared
        return self.judged()


class Logits(Layers):
    """What both models say about a text."""

    level = logits.LEVEL

    def __init__(self, proof: Proof, journal: Notes) -> None:
        super().__init__(proof, journal)
        weights = self.candidate.weights
        self._passes = logits.Passes(self.reference, weights, self.tokens, proof.form, self._type, proof.place)
        self.compared = self._passes.layers

    def _type(self, layer: int) -> str:
        names = [name for name in self.candidate.weights.file.tensors if name.startswith(f"blk.{layer}.")]
        return self.candidate.coarsest(names, self.proof.request.limits)

    def run(self, section: Section) -> Iterator[int]:
        """Take both models' states through a section."""
        self._passes.run(section)
        self.wrong |= any(self.judged())
        yield self.nbytes(section)

    def state(self) -> Arrays:
        """Return the hidden states of both models, what was chosen, and the scores of heads that are through."""
        ours, theirs = self._passes.before()
        kept = noted.of_choosers(self._passes.choosers) | noted.of_scores(self._passes.scores)
        return {"ours": ours.numpy(force=True), "theirs": theirs.numpy(force=True)} | kept

    def restore(self, state: Arrays) -> None:
        """Take over states, choices and scores."""
        place = self.proof.place
        self._passes.states = place.tensor(state["ours"]), place.tensor(state["theirs"])
        self._passes.scores += noted.scores_of(state, self.reference.model.vocab)
        noted.put_back(state, self._passes.choosers, place)

    def judged(self) -> Iterator[Finding | None]:
        """Yield what is wrong with the layers."""
        limits = self.proof.request.limits
        return (attention.judge(result, limits, logits.LEVEL, "layer") for result in self.compared)

    def end(self) -> Iterator[Finding | None]:
        """Tell of layers and predictions; a prediction layer only proposes, so it is judged by its layer alone."""
        self.proof.layers = self.compared
        self.proof.scores, *self.proof.predicted = self._passes.scores
        yield from self.judged()
        yield logits.judge(self.proof.scores, self.candidate.divergence(self.proof.request.limits))


class Engine(Stage):
    """Our own forward pass over the file, and a real engine after it."""

    level = engine.LEVEL

    def __init__(self, proof: Proof, journal: Notes) -> None:
        super().__init__(proof, journal)
        self._ours = engine.Ours(self.candidate.weights, self.tokens[0], proof.place)

    def run(self, section: Section) -> Iterator[int]:
        """Take our states through a section."""
        self._ours.run(section)
        yield self.nbytes(section)

    def state(self) -> Arrays:
        """Return the hidden states, and what was chosen."""
        kept = {"ours": self._ours.state.numpy(force=True), "log": self._ours.log}
        return kept | noted.of_choosers({"ours": self._ours.pass_.chooser})

    def restore(self, state: Arrays) -> None:
        """Take over states and choices."""
        self._ours.state, self._ours.log = self.proof.place.tensor(state["ours"]), state["log"]
        noted.put_back(state, {"ours": self._ours.pass_.chooser}, self.proof.place)

    def end(self) -> Iterator[Finding | None]:
        """Ask the engine."""
        request = self.proof.request
        self.proof.engine, explained = self._ours.ask(request.candidate)
        yield engine.judge(self.proof.engine, explained if set(self.candidate.shares()) == {"F32"} else None)
