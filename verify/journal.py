"""What a proof has found so far, in a directory of its own, so that the same command can go on where it was stopped.

DIRECTORY/journal names what the proof is made of, and then has a line for every tensor and every section of the model
that is through. DIRECTORY/state-0 and -1 hold, in turn, what the next section begins with: hidden states, not weights.
A state is on the disk before the line of its section, and the one before stays until then.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
import zipfile
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.files import platform
from gguf_mla.files.guard import check_apart
from gguf_mla.files.input import InputFile
from gguf_mla.files.locked import open_locked
from gguf_mla.files.output import unwritable
from gguf_mla.files.readable import here
from gguf_mla.files.records import Reading, Records
from gguf_mla.files.stamp import stamp
from gguf_mla.forward.opening import files_of
from gguf_mla.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gguf_mla.files.readable import AnyPath
    from verify.job import Request
    from verify.opening import Candidate

    Arrays = Mapping[str, NDArray[Any]]

PROGRAM = "gguf-mla verify"
JOURNAL, STATES = "journal", ("state-0", "state-1")
TENSOR, SECTION = "tensor", "section"  # what a line is about
NUMBER = "section"  # the array of a state that says after which section it was
SECONDS = 1.0  # of work that a power cut may cost beside the tensor at hand
UNDECIDING = ("reference", "candidate", "text", "tokens", "imatrix", "threads", "resume")  # or compared as files


class Notes(Protocol):
    """What stages note, and what is known from an earlier run; it `lasts` if a later run can know it."""

    @property
    def lasts(self) -> bool:
        """Whether anything is kept."""

    def tensor(self, level: str, name: str) -> Any:
        """Return what a level has found in a tensor, None where that is not known."""

    def note(self, level: str, name: str, found: Any) -> None:
        """Note what a level has found in a tensor."""

    def sections(self) -> Sequence[Mapping[str, Any]]:
        """Return of every section that is through what each level has found in it, by the level's name."""

    def state(self) -> Arrays:
        """Return what comes after the last of these sections begins with."""

    def through(self, found: Mapping[str, Any], state: Arrays) -> None:
        """Note that a section is through for all levels."""


class NoJournal:
    """The journal of a proof that is not to be continued: it knows nothing and notes nothing."""

    lasts = False

    def tensor(self, level: str, name: str) -> None:
        """Nothing is known."""

    def note(self, level: str, name: str, found: Any) -> None:
        """Note nothing."""

    def sections(self) -> Sequence[Mapping[str, Any]]:
        """Return nothing."""
        return ()

    def state(self) -> Arrays:
        """Return nothing."""
        return {}

    def through(self, found: Mapping[str, Any], state: Arrays) -> None:
        """Note nothing."""

    def remove(self) -> None:
        """There is nothing to delete."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to close."""


def identity(request: Request, candidate: Candidate) -> tuple[dict[str, Any], list[AnyPath]]:
    """Return what a proof is made of, and the files it reads: equal identities make equal reports, but for times."""
    options = {field.name: getattr(request, field.name) for field in fields(request) if field.name not in UNDECIDING}
    given = [path for path in (request.text, request.tokens, request.imatrix) if path is not None]
    read = [*files_of(candidate.reference.weights), *files_of(candidate.weights), *given]
    options_digest = hashlib.sha256(repr(options).encode()).hexdigest()
    return {"version": __version__, "options": options_digest, "inputs": [stamp(path) for path in read]}, read


class Journal:
    """The journal of a proof in a directory, which is created; another process cannot have it at the same time.

    Raises InputError when the directory holds something else, or the journal of a proof that was made of something
    else. Nothing is changed in it then.
    """

    lasts = True

    def __init__(self, directory: Path, stated: Mapping[str, Any], inputs: Sequence[AnyPath]) -> None:
        self.path = directory / JOURNAL
        check_apart([self.path], [directory / name for name in STATES], here(inputs))
        _make(directory)
        self._states = [directory / name for name in STATES]
        self._tensors: dict[tuple[str, str], Any] = {}
        self._sections: list[Mapping[str, Any]] = []
        self._state: Arrays = {}
        self._pending: list[str] = []
        self._saved = time.monotonic()
        self._records = Records(self.path)
        try:
            self._open(stated)
        except BaseException:
            self._records.__exit__()
            raise

    def _open(self, stated: Mapping[str, Any]) -> None:
        reading = Reading(self.path, lambda line: _line(line) is not None)
        if reading.head is None:
            _check_new(self.path)
            self._records.begin({"program": PROGRAM, **stated})
            return
        _check_same(self.path, reading.head, stated)
        for line in reading:
            self._take(*(_line(line) or ("", None)))
        self._records.cut(reading.end)
        self._find_state()

    def _take(self, word: str, data: Any) -> None:
        if word == SECTION:
            del self._sections[data["number"] :]  # it was gone through again, as its state was damaged
            self._sections.append(data["found"])
        else:
            self._tensors[data["level"], data["name"]] = data["found"]

    def _find_state(self) -> None:
        """Go back to the last section whose state is whole."""
        whole = [(int(state[NUMBER]), state) for path in self._states if (state := _state(path))]
        fitting = [each for each in whole if each[0] < len(self._sections)]
        number, self._state = max(fitting, key=lambda each: each[0], default=(-1, {}))
        del self._sections[number + 1 :]

    def tensor(self, level: str, name: str) -> Any:
        """Return what a level has found in a tensor, None where that is not known."""
        return self._tensors.get((level, name))

    def note(self, level: str, name: str, found: Any) -> None:
        """Note what a level has found in a tensor; it is on the disk a little later."""
        self._pending.append(f"{TENSOR} {json.dumps({'level': level, 'name': name, 'found': found})}")
        if time.monotonic() - self._saved > SECONDS:
            self.save()

    def save(self) -> None:
        """Bring to the disk what has been noted."""
        self._records.append(self._pending)
        self._pending, self._saved = [], time.monotonic()

    def sections(self) -> Sequence[Mapping[str, Any]]:
        """Return of every section that is through what each level has found in it, by the level's name."""
        return tuple(self._sections)

    def state(self) -> Arrays:
        """Return what comes after the last of these sections begins with; it is asked for once."""
        found, self._state = self._state, {}
        return found

    def through(self, found: Mapping[str, Any], state: Arrays) -> None:
        """Note that a section is through for all levels; it is on the disk when this returns."""
        number = len(self._sections)
        file, arrays = io.BytesIO(), {NUMBER: np.array(number), **state}
        np.savez(file, **arrays)  # type: ignore[arg-type]  # of all names one is an option's
        _write(self._states[number % len(self._states)], file.getbuffer())
        self._sections.append(found)
        self._pending.append(f"{SECTION} {json.dumps({'number': number, 'found': found})}")
        self.save()

    def remove(self) -> None:
        """Delete the journal, and its directory if nothing else is in it."""
        self._pending = []
        for path in self._states:
            platform.remove(path)
        self._records.remove()
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._pending:
                self.save()
        finally:
            self._records.__exit__()


def _make(directory: Path) -> None:
    try:
        directory.mkdir(exist_ok=True)
        there = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        remedy = "Name a directory that can be created"
        raise InputError(f"cannot be used for a journal ({error.strerror})", file=directory, remedy=remedy) from None
    if there and JOURNAL not in there:
        what = "is not empty, and not the directory of a proof's journal"
        raise InputError(what, file=directory, found=there[0], remedy="Name another directory, or an empty one")


def _check_new(path: Path) -> None:
    """Raise InputError where there is something that cannot be the beginning of a journal of ours."""
    begin = json.dumps({"program": PROGRAM}).encode()[:-1]
    with InputFile(path) as file:
        found = file.read(0, min(file.size, len(begin))).tobytes()
    if found != begin[: len(found)]:
        raise InputError("is not the journal of a proof", file=path, remedy="Name another directory")


def _check_same(path: Path, head: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    """Raise InputError unless a journal is that of a proof that is made of the same."""
    if head.get("program") != PROGRAM:
        raise InputError("is not the journal of a proof", file=path, remedy="Name another directory")
    if head.get("version") != stated["version"]:
        difference = f"by another version of gguf-mla ({head.get('version')})"
    elif head.get("options") != stated["options"]:
        difference = "with other options"
    elif head.get("inputs") != json.loads(json.dumps(stated["inputs"])):
        known = head.get("inputs") or []
        changed = next((entry[0] for entry in stated["inputs"] if entry not in known), "one")
        difference = f"with other files, {changed} has changed since"
    else:
        return
    remedy = "Name another directory, delete this one to start over, or finish it with the command that began it"
    raise InputError(f"an unfinished proof is there that was begun {difference}", file=path, remedy=remedy)


def _line(text: str) -> tuple[str, Any] | None:
    """Return the word and the data of a line; None for one that is not ours."""
    word, _, data = text.partition(" ")
    if word not in (TENSOR, SECTION):
        return None
    try:
        return word, json.loads(data)
    except (ValueError, RecursionError):
        return None


def _state(path: Path) -> dict[str, NDArray[Any]]:
    """Return a state that is whole, nothing where none is: every array in the file has a checksum."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}
    return found if NUMBER in found else {}


def _write(path: Path, data: memoryview) -> None:
    fd = open_locked(path)
    try:
        platform.truncate(fd, 0)
        platform.append(fd, data)
        platform.sync_data(fd)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        os.close(fd)
