"""What an unfinished run has brought to the disk, so that the same command can go on where it stopped.

OUT.gguf.journal lies beside OUT.gguf.partial. Its first line says what the run is made of, as JSON; every other line is
a chunk whose bytes were synced before the line was written: its number, how many bytes it has, and the CRC-32 of those
in each output. A rerun believes none of it: it reads the bytes back and compares. A torn last line, or anything behind
it, counts as not written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from array import array
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from gguf_mla import __version__
from gguf_mla.errors import InputError, MachineError
from gguf_mla.files import platform
from gguf_mla.files.input import unreadable
from gguf_mla.files.output import unwritable
from gguf_mla.stream import chunks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from gguf_mla.container.writer import FileLayout
    from gguf_mla.plan.outputs import PlannedFile
    from gguf_mla.stream.chunks import Chunk, Sums

SUFFIX = ".journal"
HEAD_BYTES = 1 << 20  # of an input that are compared: the header of a shard, most of that of a GGUF file
MAX_LINE = 1 << 26  # the first line names every input
FINISHED = "finished"


@dataclass(frozen=True)
class Identity:
    """What a run is made of: equal identities make equal bytes.

    version  of this package
    plan     a digest of all heads and of where each tensor comes from
    inputs   the files that are read: name, size, time of change, digest of the first MiB
    """

    version: str
    plan: str
    inputs: list[list[Any]]


def identity(planned: Sequence[PlannedFile], layouts: Sequence[FileLayout], inputs: Iterable[Path]) -> Identity:
    """Return the identity of a run that writes these files from these inputs; InputError for an unreadable input."""
    digest = hashlib.sha256(str(chunks.CHUNK_VALUES).encode())
    for file, layout in zip(planned, layouts, strict=True):
        digest.update(file.path.name.encode() + b"\0" + layout.head)
        for job in file.tensors:
            digest.update(repr((job.via, job.parts)).encode())
    return Identity(__version__, digest.hexdigest(), [_stamp(path) for path in inputs])


def _stamp(path: Path) -> list[Any]:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            head = hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None
    return [path.name, status.st_size, status.st_mtime_ns, head]


class Claims:
    """Checksums by chunk number, in twelve bytes each: a large model has a million chunks.

    `nbytes` is how many bytes the chunks have together.
    """

    def __init__(self, lines: Iterable[str] = (), places: int = 1) -> None:
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
        self._sums = np.array(sums, np.uint32).reshape(-1, places)[order]

    def of(self, number: int) -> Sums | None:
        """Return the checksums of a chunk, the last that were noted; None if it is not known."""
        at = int(np.searchsorted(self._numbers, np.uint64(number), side="right")) - 1
        if at < 0 or self._numbers[at] != number:
            return None
        return tuple(map(int, self._sums[at]))


class NoJournal:
    """The journal of a run that is not to be continued: it knows nothing and notes nothing."""

    claims = Claims()
    nbytes = 0

    def record(self, written: Sequence[tuple[Chunk, Sums]]) -> None:
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

    def __init__(self, out: Path, stated: Identity, places: int) -> None:
        self.path = journal_path(out)
        check_same(out, stated, places)
        past = _Reading(self.path, places)
        self.claims = Claims(past, places)
        self.nbytes = self.claims.nbytes
        try:
            self._file = open(self.path, "ab", opener=platform.open_no_follow)  # noqa: SIM115 - takes an opener, and is kept
            self._file.truncate(past.end)
        except OSError as error:
            raise unwritable(self.path, error) from None
        if past.head is None:
            self._begin(stated)

    def _begin(self, stated: Identity) -> None:
        try:
            self._append([json.dumps(asdict(stated))])
        except MachineError:
            self.remove()
            raise

    def record(self, written: Sequence[tuple[Chunk, Sums]]) -> None:
        """Note chunks whose bytes are on the disk."""
        self._append(
            f"{chunk.number} {chunk.nbytes} {' '.join(f'{value:08x}' for value in sums)}" for chunk, sums in written
        )
        self.nbytes += sum(chunk.nbytes for chunk, _ in written)

    def finish(self) -> None:
        """Note that everything is on the disk and the files are about to be named."""
        self._append([FINISHED])

    def remove(self) -> None:
        """Close and delete the journal, in this order, because not every system deletes an open file."""
        self.__exit__()
        self.path.unlink(missing_ok=True)

    def _append(self, lines: Iterable[str]) -> None:
        try:
            self._file.write("".join(f"{line}\n" for line in lines).encode())
            self._file.flush()
            platform.sync_data(self._file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # What a full disk has kept in the buffer was reported, and would be refused again here.
        with contextlib.suppress(OSError):
            self._file.close()


def journal_room(nbytes: int) -> int:
    """Return how many bytes the journal of outputs of `nbytes` may take: a line of some thirty for each chunk."""
    return (nbytes >> 14) + (64 << 10)


def journal_path(out: Path) -> Path:
    """Return where the journal of the run whose first output is `out` lies."""
    return out.with_name(out.name + SUFFIX)


def was_finished(out: Path, places: int) -> bool:
    """Whether a run was stopped while it named its files, so that some may have their final names already."""
    past = _Reading(journal_path(out), places)
    for _ in past:
        pass
    return past.finished


def check_same(out: Path, stated: Identity, places: int) -> None:
    """Raise InputError if the journal is that of a run that was made of something else."""
    path = journal_path(out)
    past = _Reading(path, places)
    if past.head is not None:
        _compare(path, past.head, stated)


class _Reading:
    """The claims of a journal as an iterator of lines, up to one that is torn or does not belong there.

    head, end, finished are what was found so far: the first line, the end of the last sound line, and the final mark.
    """

    def __init__(self, path: Path, places: int) -> None:
        self.end, self.finished = 0, False
        self._line = re.compile(rf"[0-9]{{1,18}} [0-9]{{1,18}}( [0-9a-f]{{8}}){{{places}}}")
        self._lines = self._sound(path)
        self.head = next(self._lines, None)

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            if line == FINISHED:
                self.finished = True
            else:
                yield line

    def _sound(self, path: Path) -> Iterator[str]:
        try:
            with path.open("rb") as file:
                while (raw := file.readline(MAX_LINE)).endswith(b"\n"):
                    line = raw[:-1].decode(errors="replace")
                    if not self._belongs(line):
                        return
                    self.end += len(raw)
                    yield line
        except FileNotFoundError:
            return
        except OSError as error:
            raise unreadable(path, error) from None

    def _belongs(self, line: str) -> bool:
        if self.end == 0:
            return _is_head(line)
        return line == FINISHED or self._line.fullmatch(line) is not None


def _is_head(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _compare(path: Path, line: str, stated: Identity) -> None:
    """Raise InputError unless the first line of a journal is that of a run that is made of the same."""
    found = json.loads(line)
    inputs = found.get("inputs")
    if found.get("version") != stated.version:
        difference = f"by another version of gguf-mla ({found.get('version')})"
    elif found.get("plan") != stated.plan:
        difference = "with other options or another configuration"
    elif inputs != stated.inputs:
        known = inputs if isinstance(inputs, list) else []
        changed = next((stamp[0] for stamp in stated.inputs if stamp not in known), "one")
        difference = f"from other inputs, {changed} has changed since"
    else:
        return
    raise InputError(
        f"an unfinished output is there that was begun {difference}",
        file=path,
        remedy="Give --no-resume to throw it away and start over, or finish it with the command that began it",
    )
