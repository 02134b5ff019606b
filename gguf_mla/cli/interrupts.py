"""Ctrl-C, once the command line has somebody to explain it: it is never lost, and never a traceback."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

AGAIN_SECONDS = 0.01


@contextmanager
def raised() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C; afterwards, when nothing is left to be said, it ends the process quietly."""
    sys.unraisablehook = _heard
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _heard(dropped: sys.UnraisableHookArgs) -> None:
    """Let an interrupt come again that came in a finaliser or a callback, where Python prints it and goes on."""
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        _thread.start_new_thread(_interrupt_again, ())
    else:
        sys.__unraisablehook__(dropped)


def _interrupt_again() -> None:
    time.sleep(AGAIN_SECONDS)
    os.kill(os.getpid(), signal.SIGINT)  # as a terminal does: it also wakes who waits
