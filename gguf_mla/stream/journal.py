"""What an unfinished run has brought to the disk, so that the same command can go on where it stopped.

OUT.gguf.journal lies beside OUT.gguf.partial. Its first line names the output and the unfinished files, with their
inodes: what is called OUT.gguf.partial and is another file is not ours. The second says what the run is made of. Then
every line is a task whose bytes were synced before the line was written: its number, how many bytes it has, and the
CRC-32 of those in each output. A rerun believes none of it: it reads the bytes back and compares. The last line, before
the files get their names, says what tells each from any other file: a rerun takes back those and nothing else.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from gguf_mla.errors import InputError
from gguf_mla.files import platform
from gguf_mla.files.guard import is_same, mark_of, partial_path
from gguf_mla.files.input import open_regular
from gguf_mla.files.locked import ELSEWHERE
from gguf_mla.files.output import NOTHING, TakenAwayError
from gguf_mla.files.records import Reading, Records
from gguf_mla.files.stamp import ChangedError
from gguf_mla.stream.books import Claims
from gguf_mla.stream.identity import difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from gguf_mla.files.guard import Mark
    from gguf_mla.stream.engine import Done
    from gguf_mla.stream.identity import Identity

SUFFIX = ".journal"
PROGRAM = "gguf-mla"
BEGIN = json.dumps({"program": PROGRAM}).encode()[:-1]  # of every journal of ours
# Lines that are not about a task: a word, JSON. Those about deliveries add up, of the others the last counts.
FILES, MADE_OF, FINISHED, DELIVERED = "files", "made-of", "finished", "delivered"


class Journal:
    """The journal of the run whose first output is `out`; it is locked first, and the lock is that of the whole run.

    stated   what this run is made of
    names    all files that it may write: the outputs, and what goes with them
    outputs  how many types are written
    fresh    whether what an earlier run has noted counts for nothing

    claims     what an earlier run has left
    nbytes     how many bytes are on the disk by now
    delivered  the files that a sink took in an earlier run: its receipts by its names for them

    Raises InputError when another process has this journal, when it is not ours, or that of a run that was made of
    something else. Nothing is changed until `begin`.
    """

    def __init__(self, out: Path, stated: Identity, names: Sequence[str], outputs: int, *, fresh: bool = False) -> None:
        self._out, self._stated, self._names = out, stated, names
        self._records = Records(journal_path(out))
        self._lock = threading.Lock()  # those who write files and those who deliver them note what they did
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
        self.delivered: Mapping[str, Mapping[str, Any]] = past.delivered if self._goes_on else {}
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
        lines = [f"{done.number} {done.nbytes} {' '.join(f'{value:08x}' for value in done.sums)}" for done in written]
        with self._lock:
            self._records.append(lines)
            self.nbytes += sum(done.nbytes for done in written)

    def deliver(self, name: str, receipt: Mapping[str, Any]) -> None:
        """Note that a sink has a file."""
        with self._lock:
            self._records.append([f"{DELIVERED} {json.dumps({name: receipt})}"])

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
    delivered the receipts of a sink, by its names for files
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
        self.delivered: Mapping[str, Mapping[str, Any]] = self._notes.get(DELIVERED, {})
        self.end = lines.end

    def _tasks(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield the lines that are about tasks, and keep the last of each of the others."""
        for line in lines:
            if (note := _note(line)) is None:
                yield line
                continue
            word, said = note
            self._notes[word] = self._notes.get(word, {}) | said if word == DELIVERED else said


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


def foreseen(out: Path, stated: Callable[[], Identity], outputs: int, *, fresh: bool) -> Foreseen:
    """Return what a run would find, and change nothing; raises what opening its `Journal` would.

    `stated` gives the run's identity; without a journal nobody asks for it, and it takes a large model half a second.
    """
    if mark_of(journal_path(out)) is None:
        return Foreseen({}, {})
    past = _past(out, stated(), outputs, fresh=fresh)
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
    if word not in (FILES, MADE_OF, FINISHED, DELIVERED):
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
