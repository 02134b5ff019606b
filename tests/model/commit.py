"""Interleavings of a command with kills, other processes and a stranger, and what has to be true after each.

An interleaving is written as the command and its events, each STEP:ACTION:NAME: `same 12:swap:a.gguf.partial 30:kill`.
Step 0 is before the command begins, `end` after it has ended. A second process that runs another command after a step
is `12:runs:other`; `12:dies:other:9` is killed after its own step 9, `12:waits:other:9` stands there until the first
has ended.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import stat
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from tests.model.world import ACTIONS, COMMANDS, DRAFTS, FILES, FINAL, JOURNAL, KEPT, NAMES, World, replaces
from tests.support.interleave import PATIENCE, Aside, Outcome, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

END = -1  # the step of what happens between the command and its rerun
OLD = {name: f"an older {name}".encode() for name in FILES}
OLD |= {f"{name}.sha256": f"{sha256(content).hexdigest()}  {name}\n".encode() for name, content in OLD.items()}
BEGUN = ("same", "overwrite")  # the commands that are interleaved with others; `overwrite` begins with older outputs
SECOND = ("runs", "dies", "waits")


@dataclass(frozen=True)
class Event:
    """What happens after a step of the command; see the head of this module."""

    step: int
    action: str
    name: str = ""
    until: int = 0

    def __str__(self) -> str:
        step = "end" if self.step == END else str(self.step)
        return ":".join(
            [step, self.action, *([self.name] if self.name else []), *([str(self.until)] * bool(self.until))]
        )


@dataclass(frozen=True)
class Interleaving:
    """A command and what happens meanwhile."""

    command: str
    events: tuple[Event, ...]

    def __str__(self) -> str:
        return " ".join([self.command, *map(str, self.events)])


def parse(text: str) -> Interleaving:
    """Read an interleaving as it is printed."""
    command, *events = text.split()
    return Interleaving(command, tuple(map(_event, events)))


def _event(text: str) -> Event:
    step, action, *rest = text.split(":")
    return Event(END if step == "end" else int(step), action, *rest[:1], *map(int, rest[1:]))


class Hanging(BaseException):
    """A run stands still."""


class Model:
    """What is known of undisturbed runs: the bytes of all outputs, and the steps of each command."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._serial = directory, 0
        self.right: dict[str, dict[str, bytes]] = {}
        self.steps: dict[str, list[tuple[str, tuple[Any, ...]]]] = {}
        for command in COMMANDS:
            world = self._world(command)
            run = Run(world.task(command))
            outcome = run.run()
            assert outcome == Outcome(0), outcome
            self.right[COMMANDS[command][0]] = {name: world.content(name) or b"" for name in FINAL}
            self.steps[command] = run.steps
            shutil.rmtree(world.directory)

    def _world(self, command: str) -> World:
        self._serial += 1
        world = World(self._directory / str(self._serial), self.right)
        for name in FINAL if command == "overwrite" else ():
            (world.directory / name).write_bytes(OLD[name])
        return world

    def faults(self, interleaving: Interleaving) -> list[str] | None:
        """Play an interleaving; return what is wrong then, None if one of its events could not happen."""
        world = self._world(interleaving.command)
        playing = _Playing(world, interleaving)
        try:
            return playing.play()
        except Hanging:
            return [f"a run stands still for {PATIENCE:g} s"]
        finally:
            world.close()
            shutil.rmtree(world.directory)

    # -------------------------------------------------------------------------------------------------- enumerations

    def singles(self) -> Iterator[Interleaving]:
        """Every single event at every step, under every name."""
        for command in BEGUN:
            steps = self.steps[command]
            for step in range(len(steps) + 1):
                for event in self._at(step, torn=step > 0 and steps[step - 1][0] == "pwrite"):
                    yield Interleaving(command, (event,))

    @staticmethod
    def _at(step: int, *, torn: bool) -> Iterator[Event]:
        for name in NAMES:
            for action in ACTIONS:
                yield Event(step, action, name)
        for command in COMMANDS:
            yield Event(step, "runs", command)
        if step:
            yield Event(step, "kill")
        if torn:
            yield Event(step, "torn")

    def several(self, seed: int) -> Iterator[Interleaving]:
        """Two or three events by chance, endlessly."""
        chance = random.Random(seed)
        while True:
            command = chance.choice(BEGUN)
            events = [self._any(command, chance) for _ in range(chance.choice((2, 2, 3)))]
            yield Interleaving(command, tuple(sorted(events, key=lambda event: (event.step == END, event.step))))

    def _any(self, command: str, chance: random.Random) -> Event:
        steps = self.steps[command]
        step = chance.choice([END, *range(len(steps) + 1)])
        kind = chance.choice(("stranger", "stranger", "kill", "second"))
        if kind == "second":
            second = chance.choice(list(COMMANDS))
            action = chance.choice(SECOND if step != END else SECOND[:2])
            return Event(step, action, second, chance.randint(1, len(self.steps[second])) if action != "runs" else 0)
        if kind == "kill" and step > 0:
            return Event(step, "torn" if steps[step - 1][0] == "pwrite" and chance.random() < 0.5 else "kill")
        return Event(step, chance.choice(list(ACTIONS)), chance.choice(NAMES))


class _Playing:
    """One interleaving in its world."""

    def __init__(self, world: World, interleaving: Interleaving) -> None:
        self._world, self._interleaving = world, interleaving
        self._command, self._events = interleaving.command, interleaving.events
        self._commands = {self._command, *(event.name for event in self._events if event.action in SECOND)}
        self._aside: list[tuple[str, Aside]] = []
        self._finished: list[str] = []
        self._happened = 0
        self._faults: list[str] = []

    def play(self) -> list[str] | None:
        with _patience():
            self._happen([event for event in self._events if event.step == 0], None)
            self._ended(self._command, self._first().run())
            for command, aside in self._aside:
                self._ended(command, aside.finish())
            self._happen([event for event in self._events if event.step == END], None)
            self._look("afterwards")
            self._rerun()
        return self._faults if self._happened == len(self._events) else None

    def _first(self) -> Run:
        by_step: dict[int, list[Event]] = {}
        for event in self._events:
            by_step.setdefault(event.step, []).append(event)
        torn = next((event.step for event in self._events if event.action == "torn"), 0)
        self._happened += torn > 0
        after = {step: self._happening(events) for step, events in by_step.items() if step > 0}
        return Run(self._world.task(self._command), after, torn)

    def _happening(self, events: list[Event]) -> Callable[[Run], None]:
        return lambda run: self._happen(events, run)

    def _happen(self, events: list[Event], run: Run | None) -> None:
        for event in sorted(events, key=lambda event: event.action == "kill"):
            if event.action in SECOND:
                self._happened += 1
                self._second(event)
            elif event.action == "kill" and run is not None:
                self._happened += 1
                run.die()
            elif event.action in ACTIONS:
                self._happened += self._world.act(event.action, event.name)

    def _second(self, event: Event) -> None:
        task = self._world.task(event.name)
        if event.action == "waits":
            aside = Aside(task, event.until)
            self._aside.append((event.name, aside))
            aside.start()
        else:
            dying = {event.until: Run.die} if event.action == "dies" else {}
            self._ended(event.name, Run(task, dying).run())

    # ------------------------------------------------------------------------------------------- what has to be true

    def _ended(self, command: str, outcome: Outcome) -> None:
        """Look at how a process has ended, and at once at what it has promised by that."""
        if outcome.status == 0:
            self._finished.append(command)
            self._promised(command, "at its end")
        elif outcome.status == -1:
            self._faults.append(f"a traceback: {outcome.said}")

    def _promised(self, command: str, when: str) -> None:
        """What a process that said 0 has written is there, but where the stranger or an --overwrite took it away."""
        kinds = {COMMANDS[command][0], *(COMMANDS[other][0] for other in self._commands if replaces(other))}
        world = self._world
        for name in FINAL:
            excused = name in world.displaced or self._is_tainted(name)
            if not excused and world.content(name) not in [world.right[kind][name] for kind in kinds]:
                self._faults.append(f"{command} said 0 but {when} this is not its output: {_kind(name)}")

    def _is_tainted(self, name: str) -> bool:
        return not {name, name.removesuffix(".sha256")}.isdisjoint(self._world.tainted)

    def _look(self, when: str) -> None:
        """Nothing incomplete under a final name, and nothing changed that is the stranger's."""
        for name in FINAL:
            self._check_final(name, when)
        for name, content in KEPT.items():
            if self._world.content(name) != content:
                self._faults.append(f"{name} was changed")
        for name, thing in self._world.things.items():
            if thing.fd >= 0 and os.pread(thing.fd, 4096, 0) != thing.content:
                self._faults.append(f"the stranger's file was changed, as {_kind(name)}")
            elif not self._world.is_strangers(name) and not self._may_replace(name):
                self._faults.append(f"what the stranger had put there was removed, as {_kind(name)}")
        for command in self._finished:
            self._promised(command, when)

    def _check_final(self, name: str, when: str) -> None:
        world, status = self._world, self._world.status(name)
        if status is None or world.is_strangers(name) or self._is_tainted(name):
            return
        known = [OLD[name]] * (self._command == "overwrite") + [files[name] for files in world.right.values()]
        if world.content(name) not in known or status.st_uid != os.geteuid():
            self._faults.append(f"{when} this is neither complete nor the stranger's: {_kind(name)}")

    def _may_replace(self, name: str) -> bool:
        regular = stat.S_ISREG(self._world.things[name].mode)
        return name in FINAL and regular and any(map(replaces, self._commands))

    def _rerun(self) -> None:
        """The same command again succeeds, or says what is in the way; taking that away, it succeeds in the end."""
        alone = all(event.action not in ACTIONS for event in self._events)
        outcome = self._again()
        if alone and {COMMANDS[command][0] for command in self._commands} == {"F16"} and not self._is_exact():
            self._faults.append(f"kills alone left other files than an undisturbed run; the rerun: {outcome}")
        self._look("after the rerun")
        said = [outcome.said]
        while outcome.status and not self._is_right() and len(said) <= len(NAMES):
            named = max((name for name in NAMES if name in outcome.said), key=len, default=None)
            if named is None or not self._world.vacate(named):
                self._faults.append(f"a rerun names nothing that is in the way: {self._plain(outcome.said)}")
                return
            outcome = self._again()
            said.append(outcome.said)
        if outcome.status and not self._is_right():
            self._faults.append(f"no rerun ever succeeds: {self._plain(said[-1])}")

    def _again(self) -> Outcome:
        outcome = Run(self._world.task(self._command)).run()
        if outcome.status == -1:
            self._faults.append(f"a traceback of the rerun: {outcome.said}")
        if outcome.status == 0 and not self._is_right():
            self._faults.append("the rerun said 0 but its outputs are not right")
        return outcome

    def _is_right(self) -> bool:
        right = self._world.right[COMMANDS[self._command][0]]
        return all(self._world.content(name) == right[name] for name in FINAL)

    def _is_exact(self) -> bool:
        return self._is_right() and {path.name for path in self._world.directory.iterdir()} == {*FINAL, *KEPT}

    def _plain(self, text: str) -> str:
        return text.replace(f"{self._world.directory}{os.sep}", "")


def _kind(name: str) -> str:
    """Which kind of name it is, so that faults of one kind read the same."""
    if name in DRAFTS:
        return "the draft of a note" if ".sha256" in name else "an unfinished file"
    return "the journal" if name == JOURNAL else "a note" if name.endswith(".sha256") else "an output"


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    def hangs(*_: object) -> None:
        raise Hanging

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
