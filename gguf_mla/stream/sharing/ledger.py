"""What workers have done, in a folder beside the first output: OUT.gguf.work.

plan.json    the plan that all of it belongs to
files.json   the unfinished files and their inodes, noted by the first worker before it wrote anything
00012.json   job 12 is on the disk: CRC-32 of every task in every output, by whom, and when
stop.json    why nobody should go on
named.json   what tells the finished files from any others, noted just before they get their names

Every note appears at once and is on the disk when it does. None is believed: it belongs to the plan, says its own
digest, and whoever relies on one reads the bytes and compares. What is torn or forged counts as not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gguf_mla.errors import InputError, MachineError
from gguf_mla.files import json_text, platform
from gguf_mla.files.guard import mark_of, partial_path
from gguf_mla.files.input import read_small
from gguf_mla.files.locked import ELSEWHERE
from gguf_mla.files.output import OutputFile, unwritable
from gguf_mla.stream.sharing import plan as plans
from gguf_mla.stream.sharing.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import PurePath

    from gguf_mla.files.guard import Mark
    from gguf_mla.stream.sharing.plan import SharedPlan

SUFFIX = ".work"
PLAN, FILES, STOP, NAMED = "plan.json", "files.json", "stop.json", "named.json"


def folder_of(out: Path) -> Path:
    """Return where the notes about the work on a first output lie."""
    return out.with_name(out.name + SUFFIX)


def me() -> str:
    """Return what this worker is called in notes: its machine, and its process there."""
    return f"{socket.gethostname()}, process {os.getpid()}"


class Ledger:
    """The notes about one plan; `out` is the first output.

    Raises InputError for a folder that is not ours, or that of another plan, and MachineError when writing fails.
    """

    def __init__(self, out: Path, plan: SharedPlan) -> None:
        self.folder, self._plan = folder_of(out), plan

    @property
    def digest(self) -> str:
        """That of the plan."""
        return self._plan.digest

    def open(self) -> None:
        """Have the folder there, for this plan."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            if isinstance(error, FileExistsError):
                raise InputError("a run would write here", file=self.folder, remedy=ELSEWHERE) from None
            raise unwritable(self.folder, error) from None
        self._publish(PLAN, self._plan.to_text())
        self.check()

    def is_there(self) -> bool:
        """Whether anything was noted for this plan; InputError where it was for another one."""
        if not os.path.lexists(self.folder / PLAN):
            return False
        self.check()
        return True

    def check(self) -> None:
        """Raise InputError if the notes are about another plan, and what a worker has stopped all others with."""
        try:
            found = plans.parse(read_small(self.folder / PLAN, json_text.MAX_BYTES)).digest
        except (InputError, ValueError) as error:
            found = f"none ({error})"
        if found != self._plan.digest:
            raise InputError(
                "work by another plan is unfinished here",
                file=self.folder,
                expected=f"digest {self._plan.digest[:16]}",
                found=f"digest {found[:16]}",
                remedy="Finish it by its own plan, or start over: make the plan again with --no-resume",
            )
        self.check_stopped()

    # ------------------------------------------------------------------------------------------------------- the jobs

    def record(self, number: int) -> Record | None:
        """Return what is noted of a job; None where nothing is, or nothing sound."""
        try:
            return Record.parse(read_small(self._of(number), json_text.MAX_BYTES), self._plan, number)
        except (InputError, MachineError, ValueError):
            return None

    def records(self) -> Iterator[Record]:
        """Yield all sound records."""
        return (found for job in self._plan.jobs if (found := self.record(job.number)) is not None)

    def is_noted(self, number: int) -> bool:
        """Whether there is a note of a job, sound or not: a quick look, for those who show how far the work is."""
        return self._of(number).exists()

    def note(self, record: Record) -> None:
        """Note that a job is done; MachineError, for all workers, where another one has made other bytes of it."""
        while not self._publish(self._of(record.number).name, record.to_text()):
            found = self.record(record.number)
            if found is not None:
                self.compare(found, record)
                return
            platform.remove(self._of(record.number))  # torn or forged

    def compare(self, found: Record, made: Record) -> None:
        """Raise MachineError, now and for all other workers, unless two records of one job say the same."""
        if found.sums != made.sums:
            tensor = next(name for name, sums in made.sums.items() if found.sums.get(name) != sums)
            self.disagree(made.number, tensor, found.worker, made.worker)

    def disagree(self, number: int, tensor: str, one: str, other: str) -> NoReturn:
        """Raise MachineError, now and for all other workers: two of them have made different bytes of a job."""
        error = differing(number, one, other, self._of(number), tensor)
        self.stop(error)
        raise error

    def _of(self, number: int) -> Path:
        return self.folder / f"{number:05}.json"

    # ------------------------------------------------------------------------------------------------------ the files

    def inodes(self) -> Mapping[str, int]:
        """Return the inodes of the unfinished files, by the output's path; nothing before they were noted."""
        found = self._read(FILES)
        return {name: number for name, number in found.items() if isinstance(number, int)}

    def note_inodes(self, inodes: Mapping[str, int]) -> None:
        """Note the unfinished files; MachineError unless they are those that another worker has noted."""
        if not self._publish(FILES, signed(inodes)) and (found := self.inodes()) != inodes:
            name = next((name for name in inodes if found.get(name) != inodes[name]), "")
            raise MachineError(
                "is not the file that this work was begun with: it was taken away, or another one is meant there",
                file=partial_path(Path(name)),
                remedy="Give the plan a folder that all machines share, or start over with --no-resume",
            )

    def marks(self) -> Mapping[str, Mark]:
        """Return what tells the files that were about to be named; nothing before."""
        return self._read(NAMED)

    def note_marks(self, marks: Mapping[str, Mark]) -> None:
        """Note that all files are complete and about to be named."""
        platform.remove(self.folder / NAMED)
        self._publish(NAMED, signed(marks))

    # ----------------------------------------------------------------------------------------------------- to an end

    def stop(self, error: InputError | MachineError) -> None:
        """Tell all workers why they should not go on; what cannot be noted is said by whoever has met it."""
        with suppress(MachineError):
            self._publish(STOP, reason(error))

    def is_stopped(self) -> bool:
        """Whether a worker has told all others to stop."""
        return (self.folder / STOP).exists()

    def check_stopped(self) -> None:
        """Raise what a worker has stopped all others with."""
        if not self.is_stopped():
            return
        raise stopped(self._read(STOP), self.folder / STOP)

    def is_complete(self, paths: Iterable[Path]) -> bool:
        """Whether all files of the plan have been named, and only these notes are left to be removed."""
        marks = self.marks()
        named = [marks.get(str(path)) == mark_of(path) and not os.path.lexists(partial_path(path)) for path in paths]
        return bool(marks) and all(named)

    def remove(self) -> None:
        """Forget everything; what says that all files are there goes last."""
        last = (PLAN, NAMED)
        with suppress(FileNotFoundError):
            for path in sorted(self.folder.iterdir(), key=lambda path: (path.name in last, path.name == NAMED)):
                platform.remove(path)
        with suppress(OSError):
            self.folder.rmdir()

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return content(read_small(self.folder / name, json_text.MAX_BYTES))
        except (InputError, MachineError, ValueError):
            return {}

    def _publish(self, name: str, text: str) -> bool:
        """Write a note that nobody has written; False if one is there. MachineError when it cannot be written."""
        draft = self.folder / f".{name}.{uuid.uuid4().hex}"
        try:
            with draft.open("xb") as file:
                file.write(text.encode())
                file.flush()
                platform.sync_data(file.fileno())
            platform.name_new(draft, self.folder / name)
            platform.sync_directory(self.folder)
        except FileExistsError:
            draft.unlink(missing_ok=True)
            return False
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise unwritable(self.folder / name, error) from None
        return True


def discard(out: Path) -> None:
    """Throw away what workers have left of a first output, whatever plan it was by; nothing that is not ours.

    InputError while one of them is at work.
    """
    try:
        plan = plans.parse(read_small(folder_of(out) / PLAN, json_text.MAX_BYTES))
    except (InputError, MachineError, ValueError):
        return
    ledger = Ledger(out, plan)
    with ExitStack() as stack:
        for name, inode in ledger.inodes().items():
            path = Path(plan.order.directory, name)
            if os.path.lexists(partial_path(path)):
                file = stack.enter_context(OutputFile(path, 0, known={path.name: inode}))
                file.kept = False  # it goes when all of them could be locked
        ledger.remove()


def reason(error: InputError | MachineError) -> str:
    """Return the note that tells all workers why they should not go on."""
    return signed({"sentence": str(error), "status": error.status, "worker": me()})


def stopped(said: Mapping[str, Any], note: object) -> InputError | MachineError:
    """Return the error for who finds such a note."""
    kind = InputError if said.get("status") == InputError.status else MachineError
    what = f"the work was stopped by {said.get('worker', 'a worker')}: {said.get('sentence', '')}".removesuffix(".")
    return kind(what, remedy=f"When it is put right, remove {note}")


def differing(number: int, one: str, other: str, record: PurePath | str, tensor: str | None = None) -> MachineError:
    """Return the error for a job of which two workers have made different bytes."""
    return MachineError(
        f"job {number} was done twice, and not to the same bytes: by {one} and by {other}",
        file=record,
        tensor=tensor,
        expected="the same bytes on every machine",
        remedy=f"One of the two computes or stores wrongly: find out which, remove its records and {STOP}, and "
        "have its jobs done again by others",
    )


def signed(content: Mapping[str, Any]) -> str:
    """Return the text of a note, with its own digest."""
    return json.dumps({**content, "sha256": _sum(content)})


def content(text: bytes) -> dict[str, Any]:
    """Return what a note says; ValueError for one that is torn."""
    found = json_text.parse(text)
    if not isinstance(found, dict) or found.pop("sha256", None) != _sum(found):
        raise ValueError("it is torn")
    return found


def _sum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(content), sort_keys=True).encode()).hexdigest()
