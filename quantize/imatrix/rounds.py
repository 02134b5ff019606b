"""A matrix made in rounds, each over more text, until every expert has seen enough of it.

A round leaves a part of a matrix beside the output; a rerun takes over those that are there. At the end all parts are
added up exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_mla.files import platform
from gguf_mla.files.guard import check_free
from gguf_mla.importance.gguf import write_matrix
from gguf_mla.importance.partial import open_part
from quantize.imatrix import coverage
from quantize.imatrix.job import Outcome
from quantize.imatrix.written import summed, total

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from gguf_mla.importance.partial import Part
    from quantize.imatrix.job import Work

Collect = Callable[["Work", "Path"], Outcome]


@dataclass(frozen=True)
class Goal:
    """What is written, and how far rounds go: until every expert has seen `tokens`, 0 for one round."""

    out: Path
    form: str
    tokens: int = 0
    overwrite: bool = False


def in_rounds(works: Iterable[Work], goal: Goal, collect: Collect, say: Callable[[str], object]) -> Outcome:
    """Do works, one after the other, until the goal is reached, and write the sum.

    Raises what `collect` does, and InputError for another file that has the name of a part.
    """
    check_free(goal.out, overwrite=goal.overwrite)
    parts: list[Part] = []
    outcome = Outcome(goal.out)
    for number, work in enumerate(works, 1):
        path = goal.out.with_name(f"{goal.out.name}.round-{number}")
        if not _is_done(path, work):
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
    return coverage.of_counts((name, total(parts, name).counts) for name in parts[0].tensors if coverage.tells(name))


def _is_done(path: Path, work: Work) -> bool:
    if not path.exists():
        return False
    if open_part(path).about.run == work.about.run:
        return True
    check_free(path, overwrite=False)
    return False
