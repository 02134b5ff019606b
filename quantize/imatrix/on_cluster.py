"""A matrix that a Ray cluster makes: parts over some chunks each, computed anywhere, and added up exactly here.

The parts lie in a folder beside the output, OUT.parts, which all machines share. A part that is complete has a note
with its digest, and one that was begun goes on after its last layer, whoever goes on with it.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import click

from gguf_mla.cli import handover
from gguf_mla.cli.distributed import LETTING_GO, connected, throw_away
from gguf_mla.cli.failures import Interrupted
from gguf_mla.cli.main import Command, main
from gguf_mla.cli.progress import progress
from gguf_mla.errors import InputError, MachineError
from gguf_mla.files.guard import check_apart, check_free, partial_path
from gguf_mla.files.locked import BusyError
from gguf_mla.files.readable import here
from gguf_mla.importance.gguf import write_matrix
from gguf_mla.importance.partial import joined, open_part
from gguf_mla.stream import on_ray
from gguf_mla.stream.on_ray import POLL_SECONDS
from quantize.imatrix.asked import Asked, Opened
from quantize.imatrix.job import How, Outcome, collect
from quantize.imatrix.notes import Note, Notes
from quantize.imatrix.rounds import as_rounds
from quantize.imatrix.written import summed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from gguf_mla.cli.progress import Progress
    from quantize.imatrix.job import Work

MEMORY = 2 << 30  # bytes that a worker asks for
_held: dict[str, Opened] = {}  # what this process has opened, by what it was told


@dataclass(frozen=True)
class Share:
    """A part, as the cluster is asked for it: a worker that is sent for one does no other."""

    number: int
    seconds: float = math.inf


def make(opened: Opened, whole: Work) -> Outcome:
    """Have the parts of a matrix computed by a cluster, unless they are there, and write their sum.

    Raises what `collect` does, and what a cluster adds to that: MachineError where workers die again and again.
    """
    asked, out, how = opened.asked.options, opened.asked.path, opened.how(whole)
    check_apart([out], [partial_path(out)], here(how.inputs))
    check_free(out, overwrite=asked.overwrite)
    with connected(asked.address):
        needs = on_ray.Needs(on_ray.threads_of_a_worker(asked.threads), MEMORY, asked.device)
        run = next(as_rounds((whole,), how)).about.run
        count = _count(asked.split_work, len(whole.chunks), on_ray.room(needs))
        notes = Notes.opened(out, run, count, wanted=asked.split_work is not None, fresh=asked.no_resume)
        _computed(opened, whole, notes, needs)
    found = [notes.sound(number) for number in range(1, notes.of + 1)]
    parts = [open_part(notes.part(note.number)) for note in found if note is not None]
    if not parts or not joined(parts).is_whole:
        raise MachineError("a part is not what its note says", file=notes.folder, remedy="Run the same command again")
    write_matrix(out, summed(parts, asked.form), overwrite=asked.overwrite)
    notes.remove()
    outcome = Outcome(out, len(whole.chunks))
    outcome.perplexity.chunks = [scores for note in found if note is not None for scores in note.scores]
    return outcome


def _count(said: str | None, chunks: int, workers: int) -> int:
    """Return how many parts there are to be; InputError for a number that cannot be."""
    if said is None:
        return min(chunks, workers)
    count = int(said) if said.isascii() and said.isdigit() and len(said) < 7 else 0
    if not 1 <= count <= chunks:
        expected = f"N, how many parts there are, at most the {chunks} chunks"
        raise InputError("--split-work cannot be done", expected=expected, found=said)
    return count


def _computed(opened: Opened, whole: Work, notes: Notes, needs: on_ray.Needs) -> None:
    """Have the parts computed that are not there."""
    asked = opened.asked
    numbers = range(1, notes.of + 1)
    there = [number for number in numbers if notes.sound(number) is not None]
    left = [Share(number) for number in numbers if number not in there]
    total, before = whole.layers * notes.of, whole.layers * len(there)
    try:
        with progress(asked.path.name, total, "layers", done=before, quiet=asked.options.quiet) as bar:
            layers = _Layers(bar, whole.layers)
            on_ray.run(part_of, _told(notes), left, needs, notes.is_there, layers.done, layers.reached)
    except InputError:
        throw_away(notes.remove)
        raise
    except KeyboardInterrupt:
        done = sum(map(notes.is_there, numbers))
        again = "Run the same command again to go on from there"
        raise Interrupted(f"{done} of {notes.of} parts are on the disk", again) from None


class _Layers:
    """How many layers of which part are computed, for a bar; a part that begins again does not move it back."""

    def __init__(self, bar: Progress, of: int) -> None:
        self._bar, self._of = bar, of
        self._at: dict[int, float] = {}
        self._shown = 0.0

    def reached(self, number: int, layers: float) -> None:
        """Say how far a part is."""
        self._at[number] = layers
        if (now := sum(self._at.values())) > self._shown:
            self._bar.update(now - self._shown)
            self._shown = now

    def done(self, numbers: Iterable[int]) -> None:
        """Say that parts are complete."""
        for number in numbers:
            self.reached(number, self._of)


def _told(notes: Notes) -> str:
    """Return what a worker has to know: the command, where it was given, and the parts."""
    context = click.get_current_context()
    if not isinstance(context.command, Command):
        raise InputError("only a command can be done on Ray", found=context.command.name)
    options = handover.options_of(context.command, context.params)
    return json.dumps(
        {"options": options, "directory": str(Path.cwd()), "out": str(notes.out), "run": notes.run, "of": notes.of}
    )


def part_of(told: str, numbers: Sequence[int], threads: int, device: str) -> Iterator[tuple[int, float]]:
    """Compute some parts: what a worker is sent for. Yields how many layers of which part are done."""
    said = json.loads(told)
    with contextlib.chdir(said["directory"]):
        if told not in _held:
            _held.clear()
            _held[told] = Opened(_asked(said["options"], threads, device))
        notes = Notes(Path(said["out"]), said["run"], said["of"])
        for number in numbers:
            yield from _layers(number, _held[told], notes)


def _asked(options: dict[str, Any], threads: int, device: str) -> Asked:
    from quantize.imatrix.command import make as command  # noqa: PLC0415 - it names what imports this

    values = handover.values_of(command, options, main)
    return Asked(**command.grouped(values | {"threads": threads, "device": device, "quiet": True, "no_resume": False}))


def _layers(number: int, opened: Opened, notes: Notes) -> Iterator[tuple[int, float]]:
    """Compute a part in a thread of its own, and yield how many of its layers are done."""
    heard: SimpleQueue[float | BaseException | None] = SimpleQueue()

    def compute() -> None:
        try:
            _part(number, opened, notes, heard.put)
            heard.put(None)
        except BaseException as error:
            heard.put(error)

    threading.Thread(target=compute, daemon=True, name="gguf-mla-part").start()
    done = 0.0
    while (said := heard.get()) is not None:
        if isinstance(said, BaseException):
            raise said
        done += said
        yield number, done


def _part(number: int, opened: Opened, notes: Notes, told: Callable[[float], object]) -> None:
    """Compute a part, unless it is there, and note it."""
    begin = time.monotonic()
    part = opened.work(f"{number}/{notes.of}")
    how = replace(opened.how(part), progress=told, overwrite=True)
    if (work := next(as_rounds((part,), how))).about.run != notes.run:
        raise InputError(
            "this machine would compute something else: the model, the texts or the version differ",
            file=notes.folder,
            remedy="Use the same version and the same files on all machines",
        )
    if notes.sound(number) is None:
        notes.forget(number)
        outcome = _collected(work, notes.part(number), how)
        notes.note(Note.of(number, outcome, time.monotonic() - begin))


def _collected(work: Work, path: Path, how: How) -> Outcome:
    """Compute a part; whoever is being ended elsewhere in the middle of it has a moment to let go of it."""
    deadline = time.monotonic() + LETTING_GO
    while True:
        try:
            return collect(work, path, how)
        except BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
