"""What is noted of the parts of a matrix, in a folder beside it: OUT.parts.

parts.json      the run that the parts are of, and how many there are
3-of-8.gguf     part 3, complete
3-of-8.json     its digest, who has computed it, and how well the model has predicted its chunks

No note is believed: whoever relies on one reads the part and compares its digest.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from gguf_mla.errors import InputError, MachineError
from gguf_mla.files import json_text, platform
from gguf_mla.files.input import InputFile, read_small
from gguf_mla.files.locked import ELSEWHERE, open_locked
from gguf_mla.files.output import OutputFile, unwritable
from gguf_mla.stream.journal import SUFFIX as JOURNAL
from gguf_mla.stream.sharing.ledger import content as said
from gguf_mla.stream.sharing.ledger import me, signed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from quantize.imatrix.job import Outcome

SUFFIX, PARTS = ".parts", "parts.json"
OURS = re.compile(r"parts\.json|[0-9]+-of-[0-9]+\.(json|gguf(\.states-[01]|\.experts|\.journal)?)")
BLOCK = 8 << 20  # bytes that are read at a time to be hashed
SCORES = 1 << 20  # tokens whose scores a note has room for


@dataclass(frozen=True)
class Note:
    """A part that is complete.

    content  its bytes and their SHA-256
    worker   who has computed it, in how many seconds
    scores   the negative log-probabilities of scored tokens by chunk, but those that an earlier run has had
    """

    number: int
    content: tuple[int, str]
    worker: str
    seconds: float
    scores: list[NDArray[np.float64]]

    @classmethod
    def of(cls, number: int, outcome: Outcome, seconds: float) -> Self:
        """Return the note of a part that was just computed here."""
        scores = outcome.perplexity.chunks
        room = sum(chunk.size for chunk in scores) <= SCORES
        return cls(number, content(outcome.path), me(), round(seconds, 3), scores if room else [])

    def to_data(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        scores = [base64.b64encode(chunk.astype(np.float64).tobytes()).decode() for chunk in self.scores]
        nbytes, sha256 = self.content
        return {
            "part": self.number, "bytes": nbytes, "content": sha256,
            "worker": self.worker, "seconds": self.seconds, "scores": scores,
        }  # fmt: skip


def content(path: Path) -> tuple[int, str]:
    """Return the bytes of a file and their SHA-256."""
    digest = hashlib.sha256()
    with InputFile(path) as file:
        for offset in range(0, file.size, BLOCK):
            digest.update(file.read(offset, min(BLOCK, file.size - offset)).data)
        return file.size, digest.hexdigest()


class Notes:
    """The notes about the parts of the matrix `out`: `of` parts of the run `run`."""

    def __init__(self, out: Path, run: str, of: int) -> None:
        self.out, self.run, self.of = out, run, of
        self.folder = out.with_name(out.name + SUFFIX)

    @classmethod
    def opened(cls, out: Path, run: str, of: int, *, wanted: bool, fresh: bool) -> Self:
        """Return the notes of a run, which goes on with as many parts as it was begun with.

        wanted  whether another number of parts will not do
        fresh   whether what an earlier run has left is thrown away

        InputError where the folder is that of another run, or not ours.
        """
        notes = cls(out, run, of)
        if fresh:
            notes.remove()
        try:
            notes.folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise InputError("a run would write here", file=notes.folder, remedy=ELSEWHERE) from None
        except OSError as error:
            raise unwritable(notes.folder, error) from None
        begun = _read(notes.folder / PARTS)
        if begun is None:
            notes._write(PARTS, {"run": run, "of": of})
            return notes
        if begun.get("run") != run or (wanted and begun.get("of") != of):
            remedy = "Finish that run with the command that began it, choose another name, or give --no-resume"
            raise InputError("holds the parts of another run", file=notes.folder, remedy=remedy)
        return cls(out, run, int(begun["of"]))

    def part(self, number: int) -> Path:
        """Return where a part lies."""
        return self.folder / f"{number}-of-{self.of}.gguf"

    def is_there(self, number: int) -> bool:
        """Whether there is a note of a part, sound or not."""
        return self._note(number).exists()

    def sound(self, number: int) -> Note | None:
        """Return the note of a part that is what it says; None where there is none."""
        data = _read(self._note(number))
        try:
            if data is None or data["run"] != self.run or data["part"] != number:
                return None
            scores = [np.frombuffer(base64.b64decode(chunk), np.float64) for chunk in data["scores"]]
            stated = int(data["bytes"]), str(data["content"])
            note = Note(number, stated, str(data["worker"]), float(data["seconds"]), scores)
            return note if content(self.part(number)) == note.content else None
        except (InputError, MachineError, KeyError, TypeError, ValueError):
            return None

    def note(self, note: Note) -> None:
        """Note that a part is complete."""
        self._write(self._note(note.number).name, {"run": self.run, **note.to_data()})

    def forget(self, number: int) -> None:
        """Remove a part whose note is not sound, and the note; what was begun stays."""
        if self.is_there(number):
            platform.remove(self._note(number))
        if self.part(number).exists():
            platform.remove(self.part(number))

    def remove(self) -> None:
        """Throw everything away that is ours; BusyError while somebody computes a part."""
        if _read(self.folder / PARTS) is None:
            return
        found = sorted(path for path in self.folder.iterdir() if OURS.fullmatch(path.name.removesuffix(".partial")))
        with ExitStack() as stack:
            for path in found:
                if path.name.endswith(JOURNAL):
                    stack.callback(os.close, open_locked(path))
            for path in sorted(found, key=lambda path: path.name == PARTS):
                platform.remove(path)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _note(self, number: int) -> Path:
        return self.part(number).with_suffix(".json")

    def _write(self, name: str, data: Mapping[str, Any]) -> None:
        text = signed(data).encode()
        with OutputFile(self.folder / name, len(text), overwrite=True) as file:
            file.put(text)


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a note says; None where there is none, or one that is torn."""
    try:
        return said(read_small(path, json_text.MAX_BYTES))
    except (InputError, MachineError, ValueError):
        return None
