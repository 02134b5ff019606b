"""How far a run is: a bar on a terminal, and a line now and then where there is none, so that nobody thinks it hangs.

Where nothing is reported for long, a line says so, too: programs that run jobs end those that are silent.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

from gguf_mla import units
from gguf_mla.cli import speech
from gguf_mla.cli.printing import log
from gguf_mla.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Note = Callable[[], str]

BYTES = "B"
EVERY = 30.0  # seconds after which there is a line in any case
SOON = 10.0  # seconds that are between two lines at least, and before the first
STEP = 0.05  # of everything, for a line before EVERY
LOOK = 0.5  # seconds between two looks at the clock


class Progress(Protocol):
    """What a stage of a run reports to."""

    def update(self, n: float = 1, /) -> object:
        """Say that so much more is done."""

    def aside(self, sentence: str) -> None:
        """Say something else, where somebody is watching."""


@contextmanager
def progress(
    name: str,
    total: int,
    unit: str = BYTES,
    *,
    done: int = 0,
    quiet: bool = False,
    leave: bool = True,
    note: Note | None = None,
) -> Iterator[Progress]:
    """Show how far a stage is, `total` in `unit`: B for bytes, or a word like "tensors"; nothing where `quiet`.

    `done` was done by an earlier run. A bar stays on the terminal afterwards if `leave`. `note` is asked for some words
    more whenever something is shown.
    """
    style, hearer = speech.current().log, speech.current().hearer
    if hearer is not None:
        yield _Told(name, total, hearer.progress, done)
        return
    if quiet or (style == speech.TEXT and sys.stderr.isatty()):
        with _bar(name, total, unit, done=done, quiet=quiet, leave=leave) as bar:
            bar.note = note
            with nullcontext() if quiet or note is None else _repeated(bar.refresh):
                yield bar
        return
    lines = Lines(name, total, unit, style, before=done, note=note)
    with _repeated(lambda: lines.tick(time.monotonic())):
        yield lines


@dataclass
class _Told:
    """Progress that the caller of a library function hears of."""

    name: str
    total: int
    tell: Callable[[str, float, float], object] | None
    done: float = 0

    def update(self, n: float = 1, /) -> None:
        self.done += n
        if self.tell is not None:
            self.tell(self.name, self.done, self.total)

    def aside(self, sentence: str) -> None:
        """Say nothing: a callback hears of numbers."""


class _Bar(tqdm):  # type: ignore[type-arg]
    note: Note | None = None

    @property
    def format_dict(self) -> Any:
        if self.note is not None:
            self.postfix = self.note()
        return super().format_dict

    def aside(self, sentence: str) -> None:
        if not self.disable:
            self.write(sentence, file=sys.stderr)


def _bar(name: str, total: int, unit: str, *, done: int, quiet: bool, leave: bool) -> _Bar:
    in_bytes = unit == BYTES
    return _Bar(
        total=total,
        initial=done,
        desc=quoted(name),
        unit=unit if in_bytes else f" {unit}",
        unit_scale=in_bytes,
        unit_divisor=1024 if in_bytes else 1000,
        leave=leave,
        disable=quiet,
    )


@dataclass
class Lines:
    """What a stage prints where there is no terminal: a line when it is due, by the clock that is handed in."""

    name: str
    total: int
    unit: str
    style: str = speech.TEXT
    begin: float = field(default_factory=time.monotonic)
    before: float = 0  # what an earlier run has done
    note: Note | None = None  # what else is worth knowing at this moment
    done: float = field(init=False)
    _said: tuple[float, float] = field(init=False)  # seconds after the begin, and what was done then

    def __post_init__(self) -> None:
        self.done, self._said = self.before, (0.0, self.before)

    def update(self, n: float = 1, /) -> None:
        """Say that so much more is done."""
        self.done += n

    def aside(self, sentence: str) -> None:
        """Say nothing: nobody is watching."""

    def tick(self, now: float) -> bool:
        """Print a line if one is due; tell whether it was."""
        seconds = now - self.begin
        when, what = self._said
        far = self.done - what >= STEP * self.total and seconds - when >= SOON
        if not far and seconds - when < EVERY:
            return False
        self._said = seconds, self.done
        fields = self.fields(seconds)
        log("progress", self.text(fields), self.style, **fields)
        return True

    def fields(self, seconds: float) -> dict[str, Any]:
        """Return how far the stage is after so many seconds, as JSON-ready data."""
        rate = (self.done - self.before) / seconds if seconds > 0 else 0.0
        left = (self.total - self.done) / rate if rate else None
        return {
            "stage": self.name,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "seconds": round(seconds, 1),
            "per_second": round(rate, 3),
            "seconds_left": None if left is None else round(max(0.0, left), 1),
        }

    def text(self, fields: dict[str, Any]) -> str:
        """Return the same in words."""
        share = f"{self.done / self.total:.0%}" if self.total else "100%"
        left = fields["seconds_left"]
        rest = "nothing done yet" if left is None else f"{units.span(left)} left"
        amounts = f"{self._amount(self.done)} of {self._amount(self.total)}"
        note = f", {self.note()}" if self.note else ""
        return f"{quoted(self.name)}: {share}, {amounts}, {self._amount(fields['per_second'])}/s, {rest}{note}"

    def _amount(self, number: float) -> str:
        return units.size(number) if self.unit == BYTES else f"{number:.4g} {self.unit}"


@contextmanager
def _repeated(look: Callable[[], object]) -> Iterator[None]:
    """Have a thread look now and then whether there is anything to show."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(LOOK)
