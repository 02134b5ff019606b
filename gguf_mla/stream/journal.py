"""What an unfinished run has brought to the disk, so that the same command can go on where it stopped.

OUT.gguf.journal lies beside OUT.gguf.partial. Its first line names the output and the unfinished files, with their
inodes: what is called OUT.gguf.partial and is another file is not ours. The second says what the run is made of. Then
every line is a task whose bytes were synced before the line was written: its number, how many bytes it has, and the
CRC-32 of those in each output. A rerun believes none of it: it reads the bytes back and compares. The last line, before
the files get their names, says what tells each from any other file: a rerun takes back those and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.files import platform
from gguf_mla.files.guard import is_same, mark_of, partial_path
from gguf_mla.files.input import open_regular
from gguf_mla.files.locked import ELSEWHERE
from gguf_mla.files.output import NOTHING, TakenAwayError
from gguf_mla.files.records import Reading, Records
from gguf_mla.files.stamp import ChangedError, stamp
from gguf_mla.stream import chunks
from gguf_mla.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from gguf_mla.container.writer import FileLayout
    from gguf_mla.files.guard import Mark
    from gguf_mla.files.readable import AnyPath
    from gguf_mla.plan.jobs import Importance
    from gguf_mla.plan.outputs import PlannedFile
    from gguf_mla.stream.engine import Done, Sums

SUFFIX = ".journal"
PROGRAM = "gguf-mla"
BEGIN = json.dumps({"program": PROGRAM}).encode()[:-1]  # of every journal of ours
FILES, MADE_OF, FINISHED = "files", "made-of", "finished"  # lines that are not about a task: a word, JSON


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
    planned: Sequence[PlannedFile], layouts: Sequence[FileLayout], inputs: Iterable[AnyPath], importance: Importance
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


class Books(Protocol):
    """What is known of a run's tasks that were done before, and is noted of those that are done now.

    claims  checksums of what is there already
    nbytes  how many bytes that are
    """

    @property
    def claims(self) -> Claims: ...  # noqa: D102 - above

    @property
    def nbytes(self) -> int: ...  # noqa: D102 - above

    def known_of(self, path: Path) -> Mapping[str, int]:
        """Return the inode of the unfinished file of an output by its name, as OutputFile takes it."""

    def take_back(self) -> None:
        """Give files their unfinished names again where a run was stopped between naming the first and the last."""

    def begin(self, files: Mapping[Path, int], /) -> None:
        """Note that the work begins, and the inodes of the unfinished files, by output."""

    def record(self, written: Sequence[Done], /) -> None:
        """Note tasks whose bytes are on the disk."""

    def finish(self, marks: Mapping[Path, Mark], /) -> None:
        """Note that everything is on the disk and the files are about to be named, and what tells each from others."""

    def keeps(self, error: BaseException, /) -> bool:
        """Whether what was written is kept when this has ended the run."""

    def remove(self) -> None:
        """Forget everything."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class NoJournal:
    """The journal of a run that is not to be continued: it knows nothing and notes nothing."""

    claims = Claims()
    nbytes = 0

    def known_of(self, _: Path) -> Mapping[str, int]:
        """Nothing is known."""
        return NOTHING

    def take_back(self) -> None:
        """Nothing was named."""

    def begin(self, files: Mapping[Path, int]) -> None:
        """Note nothing."""

    def record(self, written: Sequence[Done]) -> None:
        """Note nothing."""

    def finish(self, marks: Mapping[Path, Mark]) -> None:
        """Note nothing."""

    def keeps(self, _: BaseException) -> bool:
        """Keep nothing: nobody could go on with it."""
        return False

    def remove(self) -> None:
        """There is nothing to delete."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to close."""


class Journal:
    """The journal of the run whose first output is `out`; it is locked first, and the lock is that of the whole run.

    stated   what this run is made of
    names    all files that it may write: the outputs, and what goes with them
    outputs  how many types are written
    fresh    whether what an earlier run has noted counts for nothing

    claims   what an earlier run has left
    nbytes   how many bytes are on the disk by now

    Raises InputError when another process has this journal, when it is not ours, or that of a run that was made of
    something else. Nothing is changed until `begin`.
    """

    def __init__(self, out: Path, stated: Identity, names: Sequence[str], outputs: int, *, fresh: bool = False) -> None:
        self._out, self._stated, self._names = out, stated, names
        self._records = Records(journal_path(out))
        try:
            self._open(outputs, fresh=fresh)
        except BaseException:
            self.__exit__()
            raise

    def _open(self, outputs: int, *, fresh: bool) -> None:
        past = _past(self._out, self._stated, outputs, fresh=fresh)
        self._known = {name: inode for name, inode in past.files.items() if name in self._names}
        self._goes_on = past.made_of is not None and not fresh
        self.claims = past.claims if self._goes_on else Claims()
        self._marks, self._end = past.finished if self._goes_on else {}, past.end
        self.nbytes = self.claims.nbytes

    def known_of(self, path: Path) -> Mapping[str, int]:
        """Return the inode of the unfinished file that an earlier run has left of an output, by its name."""
        return {path.name: self._known[path.name]} if path.name in self._known else NOTHING

    def take_back(self) -> None:
        """Give files their unfinished names again where a run was stopped between naming the first and the last."""
        back = [path for path in map(self._out.with_name, self._names) if is_named_by(self._marks, path)]
        for path in back:
            take_back(path)
        if back:
            platform.sync_directory(self._out.parent)

    def begin(self, files: Mapping[Path, int]) -> None:
        """Go on after what is sound, or begin anew; `files` are the inodes of the unfinished files, by output."""
        noted = {path.name: inode for path, inode in files.items()}
        if self._goes_on:
            self._records.cut(self._end)
            self._records.append([f"{FILES} {json.dumps(noted)}"])
            return
        self._records.begin({"program": PROGRAM, "output": self._out.name, FILES: noted})
        self._records.append([f"{MADE_OF} {json.dumps(asdict(self._stated))}"])

    def record(self, written: Sequence[Done]) -> None:
        """Note tasks whose bytes are on the disk."""
        self._records.append(
            f"{done.number} {done.nbytes} {' '.join(f'{value:08x}' for value in done.sums)}" for done in written
        )
        self.nbytes += sum(done.nbytes for done in written)

    def finish(self, marks: Mapping[Path, Mark]) -> None:
        """Note that everything is on the disk and the files are about to be named, and what tells each from others."""
        noted = {path.name: mark for path, mark in marks.items()}
        self._records.append([f"{FINISHED} {json.dumps(noted)}"])

    def keeps(self, error: BaseException) -> bool:
        """Keep what a rerun can continue. After an input error nothing can be: the input has to change first."""
        return self.nbytes > 0 and not isinstance(error, InputError | ChangedError | TakenAwayError)

    def remove(self) -> None:
        """Delete the journal."""
        self._records.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._records.__exit__()


class _Past:
    """What a journal says of an earlier run, as far as it is sound.

    is_ours   whether it is a journal of a run with this first output, or may become one
    files     the inode of each unfinished file, by the output's name
    made_of   what the run was made of
    claims    the tasks it had done
    finished  the marks of the files that it was about to name
    end       of what is sound
    """

    def __init__(self, out: Path, outputs: int) -> None:
        self.path = journal_path(out)
        lines = _reading(self.path, outputs)
        head = lines.head or {}
        ours = (head.get("program"), head.get("output")) == (PROGRAM, out.name)
        self.is_ours = ours if head else _begins_like_ours(self.path)
        files = head.get(FILES)
        self._notes: dict[str, dict[str, Any]] = {FILES: files if isinstance(files, dict) else {}}
        self.claims = Claims(self._tasks(lines), outputs)
        self.files: Mapping[str, int] = self._notes[FILES]
        self.made_of = self._notes.get(MADE_OF)
        self.finished: Mapping[str, Mark] = self._notes.get(FINISHED, {})
        self.end = lines.end

    def _tasks(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield the lines that are about tasks, and keep the last of each of the others."""
        for line in lines:
            if (note := _note(line)) is None:
                yield line
            else:
                self._notes[note[0]] = note[1]


def _past(out: Path, stated: Identity, outputs: int, *, fresh: bool) -> _Past:
    """Return what a journal says; InputError if it is not ours, or that of a run that was made of something else."""
    past = _Past(out, outputs)
    if not past.is_ours:
        raise InputError("is there already, and is not the journal of such a run", file=past.path, remedy=ELSEWHERE)
    if past.made_of is not None and not fresh:
        _compare(past.path, past.made_of, stated)
    return past


@dataclass(frozen=True)
class Foreseen:
    """What an earlier run has left: the inodes of its unfinished files and the marks of those it named, by name."""

    files: Mapping[str, int]
    marks: Mapping[str, Mark]


def foreseen(out: Path, stated: Identity, outputs: int, *, fresh: bool) -> Foreseen:
    """Return what a run would find, and change nothing; raises what opening its `Journal` would."""
    if mark_of(journal_path(out)) is None:
        return Foreseen({}, {})
    past = _past(out, stated, outputs, fresh=fresh)
    return Foreseen(past.files, {} if fresh else past.finished)


def _begins_like_ours(path: Path) -> bool:
    """Whether what there is of a first line may be a part of ours; nothing may be."""
    try:
        with open_regular(path) as file:
            begin = file.read(len(BEGIN))
    except FileNotFoundError:
        return True
    except (OSError, InputError):  # it has taken the name since it was found to be readable
        return False
    return begin == BEGIN[: len(begin)]


def take_back(path: Path) -> None:
    """Give a file that was named too early its unfinished name again; InputError if something else has that."""
    partial = partial_path(path)
    try:
        if is_same(path, partial):  # it was stopped while the file had both names
            platform.remove(path)
        else:
            platform.name_new(path, partial)
    except FileExistsError:
        what = f"is in the way of {path.name}, which an earlier run has finished and this one would go on with"
        raise InputError(what, file=partial, remedy=ELSEWHERE) from None


def is_named_by(marks: Mapping[str, Mark], path: Path) -> bool:
    """Whether a file is the very one that an earlier run has finished and named."""
    return path.name in marks and marks[path.name] == mark_of(path)


def journal_room(nbytes: int) -> int:
    """Return how many bytes the journal of outputs of `nbytes` may take: a line of some thirty for each task."""
    return (nbytes >> 14) + (64 << 10)


def journal_path(out: Path) -> Path:
    """Return where the journal of the run whose first output is `out` lies."""
    return out.with_name(out.name + SUFFIX)


def finished(out: Path, outputs: int) -> Mapping[str, Mark]:
    """Return what tells the files that a run was about to name when it was stopped, by name; nothing if it was not."""
    return {} if mark_of(journal_path(out)) is None else _Past(out, outputs).finished


def _reading(path: Path, outputs: int) -> Reading:
    line = re.compile(rf"[0-9]{{1,18}} [0-9]{{1,18}}( [0-9a-f]{{8}}){{{outputs}}}")
    return Reading(path, lambda text: line.fullmatch(text) is not None or _note(text) is not None)


def _note(line: str) -> tuple[str, dict[str, Any]] | None:
    """Return the word and the object of a line that is not about a task; None for another line."""
    word, _, text = line.partition(" ")
    if word not in (FILES, MADE_OF, FINISHED):
        return None
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return (word, said) if isinstance(said, dict) else None


def _compare(path: Path, found: Mapping[str, Any], stated: Identity) -> None:
    """Raise InputError unless the head of a journal is that of a run that is made of the same."""
    if other := difference(found, stated):
        raise InputError(
            f"an unfinished output is there that was begun {other}",
            file=path,
            remedy="Give --no-resume to throw it away and start over, or finish it with the command that began it",
        )


def difference(found: Mapping[str, Any], stated: Identity) -> str | None:
    """Return in what a run differs from one that is made of `found`, in words that go on after "begun"."""
    inputs = found.get("inputs")
    if found.get("version") != stated.version:
        return f"by another version of gguf-mla ({found.get('version')})"
    if found.get("plan") != stated.plan:
        return "with other options or another configuration"
    if inputs != stated.inputs:
        known = inputs if isinstance(inputs, list) else []
        changed = next((entry[0] for entry in stated.inputs if entry not in known), "one")
        return f"from other inputs, {changed} has changed since"
    if found.get("importance") != stated.importance:
        return "with other importance: which files, and what is included, excluded or stands in"
    return None
