"""The levels on their way through a model: each goes through one section at a time, and says in the end what it found.

What a stage has found in a section can be noted, and taken from the note by a stage of a later run instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from verify import noted
from verify.sections import Kind, by_section

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from gguf_mla.container.reader import GgufTensor
    from verify.findings import Finding
    from verify.job import Proof
    from verify.journal import Notes
    from verify.levels.attention import LayerAgreement
    from verify.opening import Candidate
    from verify.sections import Section

    Arrays = Mapping[str, NDArray[Any]]


class Stage(ABC):
    """A level that goes through a model.

    level  its name
    wrong  whether it has found something wrong so far
    """

    level: ClassVar[str]
    wrong = False

    def __init__(self, proof: Proof, journal: Notes) -> None:
        self.proof, self.journal = proof, journal
        self.reference = self.candidate.reference.weights
        weights = self.candidate.weights
        self.tensors = by_section(weights.held, weights.model)

    @property
    def candidate(self) -> Candidate:
        """The file, with what is known so far of what happened to it."""
        assert self.proof.candidate is not None  # noqa: S101 - a candidate that cannot be opened ends the proof before
        return self.proof.candidate

    @property
    def tokens(self) -> NDArray[np.int64]:
        """The chunks [B, T] that are run over."""
        assert self.proof.tokens is not None  # noqa: S101 - taken before for every level that asks
        return self.proof.tokens

    def nbytes(self, section: Section) -> int:
        """Return how many bytes of the candidate it goes through in a section."""
        return 0 if section.kind is Kind.EMBEDDINGS else sum(tensor.nbytes for tensor in self.tensors[section])

    @abstractmethod
    def run(self, section: Section) -> Iterator[int]:
        """Go through the next section; yield bytes as they are through, `nbytes` in all."""

    def found(self) -> Any:
        """Return what it has found in the section that it has just gone through, as plain data."""
        return None

    def take(self, section: Section, found: Any) -> None:
        """Take over what was found in the next section; where that is all in the state, there is nothing to do."""
        del section, found

    def state(self) -> Arrays:
        """Return what the next section begins with."""
        return {}

    def restore(self, state: Arrays) -> None:
        """Begin the next section with the state that there was."""
        del state

    def so_far(self) -> Iterator[Finding | None]:
        """Give the proof what has been found, even if not all sections are through."""
        return iter(())

    def end(self) -> Iterator[Finding | None]:
        """Give the proof what only all sections together tell."""
        return iter(())


class Tensors(Stage):
    """A level that goes through all tensors, and notes each."""

    def nbytes(self, section: Section) -> int:
        """Return how many bytes of the candidate are in a section."""
        return sum(tensor.nbytes for tensor in self.tensors[section])

    def run(self, section: Section) -> Iterator[int]:
        """Compare the tensors of a section, but those that are noted already."""
        with ThreadPoolExecutor(self.proof.request.threads) as pool:
            for tensor in self.tensors[section]:
                if (known := self.journal.tensor(self.level, tensor.name)) is not None:
                    self.take_tensor(tensor, known)
                    yield tensor.nbytes
                else:
                    found = yield from self.compare(tensor, pool)
                    self.journal.note(self.level, tensor.name, found)

    def take(self, section: Section, found: Any) -> None:
        """Take over the tensors of a section; each is noted by itself."""
        del found
        for tensor in self.tensors[section]:
            self.take_tensor(tensor, self.journal.tensor(self.level, tensor.name))

    @abstractmethod
    def compare(self, tensor: GgufTensor, pool: ThreadPoolExecutor) -> Generator[int, None, Any]:
        """Compare a tensor; return what was found as plain data, and yield bytes as they are through."""

    @abstractmethod
    def take_tensor(self, tensor: GgufTensor, known: Any) -> None:
        """Take over what was found in a tensor."""


class Layers(Stage):
    """A level that judges layers, one after the other."""

    def __init__(self, proof: Proof, journal: Notes) -> None:
        super().__init__(proof, journal)
        self.compared: list[LayerAgreement] = []
        self._told = 0

    def found(self) -> Any:
        """Return the agreement of the layers since it was last asked for."""
        new, self._told = self.compared[self._told :], len(self.compared)
        return [asdict(layer) for layer in new]

    def take(self, section: Section, found: Any) -> None:
        """Take over the agreement of a layer."""
        del section
        self.compared += map(noted.layer_of, found)
        self._told = len(self.compared)
        self.wrong |= any(self.judged())

    @abstractmethod
    def judged(self) -> Iterator[Finding | None]:
        """Yield what is wrong with the layers."""
