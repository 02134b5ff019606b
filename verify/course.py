"""Levels on their way through a model, side by side: each section by all of them before the next.

The result is that of running one after the other: once a level has found something wrong, or has failed, those after it
are given up with all they have found, and those before it go on.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import GgufMlaError
from gguf_mla.forward.place import enough_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from verify.findings import Finding
    from verify.job import Proof
    from verify.journal import Notes
    from verify.sections import Section
    from verify.stages.base import Stage

    Step = Callable[[int], object]
    # Shows how far a proof is: all bytes, those that are through → what is called with the bytes of every step.
    Bar = Callable[[int, int], AbstractContextManager[Step]]


class ProofInterrupted(KeyboardInterrupt):
    """Ctrl-C during a proof: `done` of `total` bytes were through."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__()
        self.done, self.total = done, total


class Course:
    """The stages of a proof; `journal` knows what an earlier run has found, and is told what this one finds."""

    def __init__(self, proof: Proof, stages: Sequence[Stage], journal: Notes) -> None:
        self._proof, self._stages, self._journal = proof, list(stages), journal
        self._seconds = dict.fromkeys((stage.level for stage in stages), 0.0)
        self._failed: tuple[Stage, GgufMlaError | MemoryError] | None = None
        self._done = 0

    def go(self, sections: Sequence[Section], bar: Bar) -> None:
        """Take all stages through the sections, and give the proof what they have found; ProofInterrupted."""
        total = sum(stage.nbytes(section) for stage in self._stages for section in sections)
        try:
            known = self._take_over(sections)
            with bar(total, self._done) as step:
                for section in sections[known:]:
                    self._section(section, step)
            self._tell()
        except KeyboardInterrupt:
            raise ProofInterrupted(self._done, total) from None

    def _take_over(self, sections: Sequence[Section]) -> int:
        """Take over what is known of the first sections; return how many."""
        known = self._journal.sections()
        for section, found in zip(sections, known, strict=False):
            for stage in self._running():
                stage.take(section, found.get(stage.level))
                self._done += stage.nbytes(section)
        state = self._journal.state()
        for stage in self._stages if known else ():
            stage.restore(_own(state, stage.level))
        return len(known)

    def _running(self) -> Iterator[Stage]:
        """Yield the stages one after the other, up to the one that has found something wrong, and give up the rest."""
        for number, stage in enumerate(tuple(self._stages)):
            if stage not in self._stages:
                return
            yield stage
            if stage.wrong:
                del self._stages[number + 1 :]

    def _section(self, section: Section, step: Step) -> None:
        for stage in self._running():
            begin = time.monotonic()
            try:
                with enough_memory():
                    self._run(stage, section, step)
            except (GgufMlaError, MemoryError) as error:
                self._failed = stage, error
                del self._stages[self._stages.index(stage) :]
            self._seconds[stage.level] += time.monotonic() - begin
        if self._failed is None:  # what is noted ends where a level has failed, which a later run may not
            self._note()

    def _run(self, stage: Stage, section: Section, step: Step) -> None:
        done, every = 0, stage.nbytes(section)
        for nbytes in stage.run(section):
            new = min(nbytes, every - done)
            done, self._done = done + new, self._done + new
            step(new)

    def _note(self) -> None:
        if not self._journal.lasts:
            return
        found = {stage.level: stage.found() for stage in self._stages}
        states = ((stage.level, stage.state()) for stage in self._stages)
        self._journal.through(found, {f"{level}.{name}": each for level, own in states for name, each in own.items()})

    def _tell(self) -> None:
        """Give the proof what was found, up to the first level that has found something wrong."""
        for stage in self._stages:
            if not self._proof.right:
                return
            begin = time.monotonic()
            self._give(itertools.chain(stage.so_far(), _later(stage.end)))
            if self._proof.failure is None:
                self._proof.seconds[stage.level] = round(self._seconds[stage.level] + time.monotonic() - begin, 3)
        if self._failed is not None and self._proof.right:
            stage, error = self._failed
            self._give(stage.so_far())
            self._proof.failure = error

    def _give(self, findings: Iterable[Finding | None]) -> None:
        try:
            with enough_memory():
                self._proof.findings += (finding for finding in findings if finding is not None)
        except (GgufMlaError, MemoryError) as error:
            self._proof.failure = error


def _later(end: Callable[[], Iterator[Finding | None]]) -> Iterator[Finding | None]:
    """Yield what is asked for only when it is wanted."""
    yield from end()


def _own(state: Mapping[str, NDArray[Any]], level: str) -> Mapping[str, NDArray[Any]]:
    """Return the part of a state that is a level's."""
    return {name.removeprefix(f"{level}."): each for name, each in state.items() if name.startswith(f"{level}.")}
