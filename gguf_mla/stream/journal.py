"""What an unfinished run has brought to the disk, so that the same command can go on where it stopped.

OUT.gguf.journal lies beside OUT.gguf.partial. Its first line says what the run is made of, as JSON; every other line is
a task whose bytes were synced before the line was written: its number, how many bytes it has, and the CRC-32 of those
in each output. A rerun believes none of it: it reads the bytes back and compares.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.files.records import Reading, Records
from gguf_mla.files.stamp import stamp
from gguf_mla.stream import chunks
from gguf_mla.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from gguf_mla.container.writer import FileLayout
    from gguf_mla.plan.jobs import Importance
    from gguf_mla.plan.outputs import PlannedFile
    from gguf_mla.stream.engine import Done, Sums

SUFFIX = ".journal"
FINISHED = "finished"


@dataclass(frozen=True)
class Identity:
    """What a run is made of: equal identities make equal bytes.

    version     of this package
    plan        a digest of all heads and of how each tensor is made
    inputs      the stamps of the files that are read
    importance  a digest of what decides the importance weights
    """

    version: str
    plan: str
    inputs: list[list[Any]]
    importance: str


def identity(
    planned: Sequence[PlannedFile], layouts: Sequence[FileLayout], inputs: Iterable[Path], importance: Importance
) -> Identity:
    """Return the identity of a run that writes these files from these inputs; InputError for an unreadable input."""
    digest = hashlib.sha256(str(chunks.CHUNK_VALUES).encode())
    for file, layout in zip(planned, layouts, strict=True):
        digest.update(file.path.name.encode() + b"\0" + layout.head)
        for job in file.tensors:
            digest.update(repr(replace(job, reason="")).encode())  # the reason decides no byte
    weights = hashlib.sha256(json.dumps(importance.identity, sort_keys=True).encode())
    return Identity(__version__, digest.hexdigest(), [stamp(path) for path in inputs], weights.hexdigest())


class Claims:
    """Checksums by task number, in twelve bytes each: a large model has a million tasks.

    `nbytes` is how many bytes the tasks have together.
    """

    def __init__(self, lines: Iterable[str] = (), outputs: int = 1) -> None:
        numbers, sums = array("Q"), array("L")
        self.nbytes = 0
        for line in lines:
            number, nbytes, *values = line.split()
            numbers.append(int(number))
            sums.extend(int(value, 16) for value in values)
            self.nbytes += int(nbytes)
        found = np.array(numbers, np.uint64)
        order = np.argsort(found, kind="stable")
        self._numbers = found[order]
        self._sums = np.array(sums, np.uint32).reshape(-1, outputs)[order]

    def of(self, number: int) -> Sums | None:
        """Return the checksums of a task, the last that were noted; None if it is not known."""
        at = int(np.searchsorted(self._numbers, np.uint64(number), side="right")) - 1
        if at < 0 or self._numbers[at] != number:
            return None
        return tuple(map(int, self._sums[at]))


class NoJournal:
    """The journal of a run that is not to be continued: it knows nothing and notes nothing."""

    claims = Claims()
    nbytes = 0

    def record(self, written: Sequence[Done]) -> None:
        """Note nothing."""

    def finish(self) -> None:
        """Note nothing."""

    def remove(self) -> None:
        """There is nothing to delete."""


class Journal:
    """The journal of the run whose first output is `out`, to be opened only while that output is locked.

    `claims` is what an earlier run has left, `nbytes` how many bytes are on the disk by now. Raises InputError when
    that run was made of something else.
    """

    def __init__(self, out: Path, stated: Identity, outputs: int) -> None:
        path = journal_path(out)
        check_same(out, stated, outputs)
        past = _reading(path, outputs)
        self.claims = Claims((line for line in past if line != FINISHED), outputs)
        self.nbytes = self.claims.nbytes
        self._records = Records(path, past.end)
        if past.head is None:
            self._records.begin(asdict(stated))

    def record(self, written: Sequence[Done]) -> None:
        """Note tasks whose bytes are on the disk."""
        self._records.append(
            f"{done.number} {done.nbytes} {' '.join(f'{value:08x}' for value in done.sums)}" for done in written
        )
        self.nbytes += sum(done.nbytes for done in written)

    def finish(self) -> None:
        """Note that everything is on the disk and the files are about to be named."""
        self._records.append([FINISHED])

    def remove(self) -> None:
        """Delete the journal."""
        self._records.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._records.__exit__()


def journal_room(nbytes: int) -> int:
    """Return how many bytes the journal of outputs of `nbytes` may take: a line of some thirty for each task."""
    return (nbytes >> 14) + (64 << 10)


def journal_path(out: Path) -> Path:
    """Return where the journal of the run whose first output is `out` lies."""
    return out.with_name(out.name + SUFFIX)


def was_finished(out: Path, outputs: int) -> bool:
    """Whether a run was stopped while it named its files, so that some may have their final names already."""
    return any(line == FINISHED for line in _reading(journal_path(out), outputs))


def check_same(out: Path, stated: Identity, outputs: int) -> None:
    """Raise InputError if the journal is that of a run that was made of something else."""
    path = journal_path(out)
    past = _reading(path, outputs)
    if past.head is not None:
        _compare(path, past.head, stated)


def _reading(path: Path, outputs: int) -> Reading:
    line = re.compile(rf"[0-9]{{1,18}} [0-9]{{1,18}}( [0-9a-f]{{8}}){{{outputs}}}")
    return Reading(path, lambda text: text == FINISHED or line.fullmatch(text) is not None)


def _compare(path: Path, found: Mapping[str, Any], stated: Identity) -> None:
    """Raise InputError unless the head of a journal is that of a run that is made of the same."""
    inputs = found.get("inputs")
    if found.get("version") != stated.version:
        difference = f"by another version of gguf-mla ({found.get('version')})"
    elif found.get("plan") != stated.plan:
        difference = "with other options or another configuration"
    elif inputs != stated.inputs:
        known = inputs if isinstance(inputs, list) else []
        changed = next((entry[0] for entry in stated.inputs if entry not in known), "one")
        difference = f"from other inputs, {changed} has changed since"
    elif found.get("importance") != stated.importance:
        difference = "with other importance: which files, and what is included, excluded or stands in"
    else:
        return
    raise InputError(
        f"an unfinished output is there that was begun {difference}",
        file=path,
        remedy="Give --no-resume to throw it away and start over, or finish it with the command that began it",
    )
