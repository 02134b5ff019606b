"""A matrix made in rounds, each over more text, until every expert has seen enough of it.

A round leaves a part of a matrix beside the output; a rerun takes over those that are there. At the end all parts are
added up exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.files import platform
from gguf_mla.files.guard import check_apart, check_free, partial_path
from gguf_mla.files.readable import here
from gguf_mla.files.stamp import stamp
from gguf_mla.importance.gguf import write_matrix
from gguf_mla.importance.partial import open_part
from quantize.imatrix import coverage
from quantize.imatrix.job import Outcome
from quantize.imatrix.written import counted, summed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from gguf_mla.files.readable import AnyPath
    from gguf_mla.importance.partial import Part
    from quantize.imatrix.job import How, Work

Collect = Callable[["Work", "Path"], Outcome]


@dataclass(frozen=True)
class Goal:
    """What is written, and how far rounds go: until every expert has seen `tokens`, 0 for one round.

    inputs     the files that are read, none of which may be written
    fresh      whether rounds that an earlier run has left are thrown away
    overwrite  whether an older output is replaced, and rounds of another run
    """

    out: Path
    form: str
    tokens: int = 0
    inputs: Sequence[AnyPath] = ()
    fresh: bool = False
    overwrite: bool = False


def as_rounds(works: Iterable[Work], how: How) -> Iterator[Work]:
    """Yield works whose parts are taken over only by a run that reads the same files, on the same kind of device."""
    made_of = [stamp(path) for path in how.inputs], how.place.device.type
    for work in works:
        run = hashlib.sha256(repr((work.about.run, made_of)).encode()).hexdigest()
        yield replace(work, partial=True, about=replace(work.about, run=run))


def in_rounds(works: Iterable[Work], goal: Goal, collect: Collect, say: Callable[[str], object]) -> Outcome:
    """Do works, one after the other, until the goal is reached, and write the sum.

    Raises what `collect` does, and InputError for another file that has the name of a part.
    """
    check_apart([goal.out], [partial_path(goal.out)], here(goal.inputs))
    check_free(goal.out, overwrite=goal.overwrite)
    parts: list[Part] = []
    outcome = Outcome(goal.out)
    for number, work in enumerate(works, 1):
        path = goal.out.with_name(f"{goal.out.name}.round-{number}")
        if not _is_done(path, work, goal):
            outcome.perplexity.chunks += collect(work, path).perplexity.chunks
        parts.append(open_part(path))
        covered = covered_by(parts)
        if covered.least >= goal.tokens or not covered.layers:
            break
        say(f"round {number}: {coverage.summary(covered)}")
    outcome.chunks = sum(part.about.chunks for part in parts)
    write_matrix(goal.out, summed(parts, goal.form), overwrite=goal.overwrite)
    for part in parts:
        platform.remove(part.path)
    return outcome


def covered_by(parts: Sequence[Part]) -> coverage.Coverage:
    """Return what the experts have seen in all parts."""
    names = [name for name in parts[0].tensors if coverage.tells(name)]
    return coverage.of_counts((name, counted(parts, name)) for name in names)


def _is_done(path: Path, work: Work, goal: Goal) -> bool:
    """Whether an earlier run has left a round that is taken over; one that is to be thrown away is removed."""
    if not path.exists():
        return False
    if open_part(path).about.run != work.about.run:
        if not goal.overwrite:
            remedy = "Finish that run with the command that began it, choose another name, or give --overwrite"
            raise InputError("is there already, and is a round of another run", file=path, remedy=remedy)
        return False
    if goal.fresh:
        platform.remove(path)
    return not goal.fresh
