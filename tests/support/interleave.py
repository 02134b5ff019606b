"""Several runs of the product in this process, each of which can be stopped after any step that it does to the disk.

A step is a call of the OS that changes something or opens something. A run that is killed does no further step: an
exception ends it, and whatever its handlers try afterwards does not reach the disk. As after a real kill, its
descriptors are closed, and so are the locks on them. flock tells two runs in one process apart by their descriptors.
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import io
import os
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import GgufMlaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Calls after which a run can be stopped. Looking (stat) is none: no program can look and act at once.
STEPS = (
    "open", "ftruncate", "truncate", "pwrite", "write", "copy_file_range", "link", "symlink", "rename", "replace",
    "unlink", "remove", "mkdir", "chmod", "fchmod", "fsync", "fdatasync",
)  # fmt: skip
SYNCS = ("fsync", "fdatasync")  # what is only simulated: everything here survives, as after a kill and no power cut
PATIENCE = 5.0  # seconds after which a run that stands still counts as hanging
_local = threading.local()


class Killed(BaseException):
    """The end of a run that no handler of the product can do anything about."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: 0, the status of an explained error and its sentence, -9 killed, -1 with a traceback."""

    status: int
    said: str = ""


class Run:
    """One process of the simulation: a task, and what happens in the world after its steps.

    Steps count from 1. `after` maps a step to what happens then, with this run as its argument; in a run with `torn`,
    a write of that number does its first half only, and the run is killed.
    """

    def __init__(
        self, task: Callable[[], object], after: Mapping[int, Callable[[Run], object]] | None = None, torn: int = 0
    ) -> None:
        self._task, self._after, self._torn = task, after or {}, torn
        self._opened: set[int] = set()
        self.steps: list[tuple[str, tuple[Any, ...]]] = []
        self.dead = False

    def run(self) -> Outcome:
        """Run to the end, or to the kill."""
        before, _local.run = current(), self
        try:
            self._task()
        except Killed:
            return Outcome(-9)
        except GgufMlaError as error:
            return Outcome(error.status, str(error))
        except Exception as error:
            return Outcome(-1, f"{type(error).__name__}: {error}")
        finally:
            _local.run = before
            self._close()
        return Outcome(0)

    def die(self) -> None:
        """Be killed."""
        self.dead = True
        raise Killed

    def call(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Do one step, and let happen what happens after it."""
        if self.dead:
            raise Killed
        if name == "pwrite" and self._torn == len(self.steps) + 1:
            fd, data, offset = arguments
            real(fd, data[: len(data) // 2], offset)
            self.die()
        result = None if name in SYNCS else real(*arguments, **named)
        if name == "open":
            self._opened.add(result)
        self.step(name, arguments)
        return result

    def step(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Count a step that was done."""
        self.steps.append((name, arguments))
        happening = self._after.get(len(self.steps))
        if happening:
            _local.run = None
            try:
                happening(self)
            finally:
                _local.run = self

    def forget(self, fd: int) -> None:
        """Hear that a descriptor was closed, or belongs to a file object, which closes it."""
        self._opened.discard(fd)

    def _close(self) -> None:
        """Close what the run has left open, as the OS does."""
        for fd in self._opened:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._opened.clear()


class Aside:
    """A run in a thread, which waits after a step until it is told to go on; only one of all runs ever moves."""

    def __init__(self, task: Callable[[], object], until: int) -> None:
        self._moves, self._goes_on = threading.Semaphore(0), threading.Event()
        self.run = Run(task, {until: lambda _: self._wait()})
        self.outcome: Outcome | None = None
        self._thread = threading.Thread(target=self._live, daemon=True)

    def start(self) -> None:
        """Run to the step, or to the end if there are fewer."""
        self._thread.start()
        self._moves.acquire()

    def finish(self) -> Outcome:
        """Run to the end."""
        self._goes_on.set()
        self._thread.join()
        assert self.outcome is not None
        return self.outcome

    def _live(self) -> None:
        self.outcome = self.run.run()
        self._moves.release()

    def _wait(self) -> None:
        self._moves.release()
        self._goes_on.wait()


def current() -> Run | None:
    """The run whose code this thread is in."""
    return getattr(_local, "run", None)


@contextlib.contextmanager
def stepped() -> Iterator[None]:
    """Make all calls of the OS steps, where a run does them; others are not concerned."""
    calls = [(os, name, _hooked(name, getattr(os, name))) for name in STEPS]
    calls.append((fcntl, "flock", _hooked("flock", fcntl.flock)))
    calls.append((os, "close", _closing(os.close)))
    calls.append((io, "open", _looking(io.open)))  # `Path.open`
    calls.append((builtins, "open", _owning(builtins.open)))
    real = [(module, name, getattr(module, name)) for module, name, _ in calls]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a killed run closes nothing
        try:
            for module, name, call in calls:
                setattr(module, name, call)
            yield
        finally:
            for module, name, call in real:
                setattr(module, name, call)


def _hooked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def step(*arguments: Any, **named: Any) -> Any:
        run = current()
        return run.call(name, call, arguments, named) if run else call(*arguments, **named)

    return step


def _closing(call: Callable[[int], None]) -> Callable[[int], None]:
    def close(fd: int) -> None:
        if run := current():
            run.forget(fd)
        call(fd)

    return close


def _owning(call: Callable[..., Any]) -> Callable[..., Any]:
    """`open` with an opener: the file object closes the descriptor itself."""

    def owning(*arguments: Any, **named: Any) -> Any:
        file = call(*arguments, **named)
        if run := current():
            run.forget(file.fileno())
        return file

    return owning


def _looking(call: Callable[..., Any]) -> Callable[..., Any]:
    """`open` of a small file that is read at once."""

    def looking(*arguments: Any, **named: Any) -> Any:
        run = current()
        if run and run.dead:
            raise Killed
        file = call(*arguments, **named)
        try:
            if run:
                run.step("read", arguments)
        except BaseException:
            file.close()
            raise
        return file

    return looking
