"""Where the time of a run goes: seconds per stage of the work, counted in each thread."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

STAGES = ("read", "decode", "encode", "write", "checksum", "copy")


class _Clock(threading.local):
    """A thread's seconds by stage, and how many of the current stage were spent in stages inside it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.inner = 0.0


_clock = _Clock()


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the time inside for a stage; the time of a stage inside it counts for that one alone."""
    before, _clock.inner = _clock.inner, 0.0
    begin = time.perf_counter()
    try:
        yield
    finally:
        took = time.perf_counter() - begin
        _clock.seconds[name] += took - _clock.inner
        _clock.inner = before + took


def take() -> dict[str, float]:
    """Return this thread's seconds by stage since its last call, and begin again at zero."""
    seconds, _clock.seconds = _clock.seconds, dict.fromkeys(STAGES, 0.0)
    return seconds
