"""Where the time of a run goes: seconds per stage of the work, counted for each thread and added up."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

STAGES = ("read", "decode", "encode", "write", "checksum", "copy")


class _Clock(threading.local):
    """The seconds of the current thread, and those that stages inside the current stage have taken."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.inner = 0.0


_clock = _Clock()


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the time inside for a stage; what a stage inside it counts is not counted twice."""
    before, _clock.inner = _clock.inner, 0.0
    begin = time.perf_counter()
    try:
        yield
    finally:
        took = time.perf_counter() - begin
        _clock.seconds[name] += took - _clock.inner
        _clock.inner = before + took


def take() -> dict[str, float]:
    """Return the current thread's seconds since it last asked."""
    seconds, _clock.seconds = _clock.seconds, dict.fromkeys(STAGES, 0.0)
    return seconds
