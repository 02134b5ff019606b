"""Who hears that kernels are compiled: it takes seconds, once, and a user should know what they wait for."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_listeners: list[Callable[[str], None]] = []


@contextlib.contextmanager
def heard_by(listener: Callable[[str], None]) -> Iterator[None]:
    """Call `listener` with a sentence when the first kernel of a type is compiled, in whatever thread that is."""
    told: set[str] = set()

    def once(sentence: str) -> None:
        if sentence not in told:
            told.add(sentence)
            listener(sentence)

    _listeners.append(once)
    try:
        yield
    finally:
        _listeners.remove(once)


def tell(what: str) -> None:
    """Say that kernels are about to be compiled for `what`."""
    for listener in tuple(_listeners):
        listener(f"compiling kernels for {what}, once")
