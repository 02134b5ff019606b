"""What goes over the network: counted, told to whoever listens, and held to a rate."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RATE_SECONDS = 5.0  # over which a rate is taken
SAMPLE_SECONDS = 0.1  # between two looks at how much has come
SAMPLES = round(RATE_SECONDS / SAMPLE_SECONDS) + 2
TOLD_SECONDS = 3.0  # a wait that is worth a sentence


class Count(NamedTuple):
    """What has gone over the network: bytes, requests, attempts that failed, seconds of waiting between attempts."""

    bytes: int
    requests: int
    retries: int
    waited: float


class Traffic:
    """The books of all connections of this process; `limit` is how many bytes a second may pass."""

    def __init__(self) -> None:
        self.limit: float | None = None
        self._lock = threading.Lock()
        self._bytes = self._requests = self._retries = 0
        self._waited = 0.0
        self._waiting = 0
        self._free_at = 0.0
        self._recent: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], SAMPLES)
        self._listeners: list[Callable[[str], None]] = []

    def requested(self) -> None:
        """Count a request."""
        with self._lock:
            self._requests += 1

    def passed(self, nbytes: int) -> None:
        """Count bytes that have passed, and wait where they are faster than they may be."""
        now = time.monotonic()
        with self._lock:
            self._bytes += nbytes
            if now - self._recent[-1][0] >= SAMPLE_SECONDS:
                self._recent.append((now, self._bytes))
            if self.limit is None:
                return
            self._free_at = max(now, self._free_at) + nbytes / self.limit
            pause = self._free_at - now
        time.sleep(pause)

    def retried(self, what: str, seconds: float, *, asked: bool) -> None:
        """Count an attempt that failed, and tell of it where the next one has to wait long."""
        with self._lock:
            self._retries += 1
            self._waiting += 1
        if seconds >= TOLD_SECONDS:
            by = ", as the server asks" if asked else ""
            self.tell(f"network: {what}; the next attempt is in {seconds:.0f} s{by}")

    def tell(self, sentence: str) -> None:
        """Say something to all who listen."""
        for listener in tuple(self._listeners):
            listener(sentence)

    def waited(self, seconds: float) -> None:
        """Count a wait that is over."""
        with self._lock:
            self._waiting -= 1
            self._waited += seconds

    def count(self) -> Count:
        """Return what has gone by so far."""
        with self._lock:
            return Count(self._bytes, self._requests, self._retries, self._waited)

    def rate(self) -> float:
        """Return the bytes per second of the last seconds."""
        now = time.monotonic()
        with self._lock:
            while len(self._recent) > 1 and now - self._recent[0][0] > RATE_SECONDS:
                self._recent.popleft()
            since, before = self._recent[0]
            return (self._bytes - before) / max(0.1, now - since)

    @property
    def waiting(self) -> int:
        """How many connections wait before their next attempt."""
        return self._waiting

    @contextlib.contextmanager
    def heard_by(self, listener: Callable[[str], None]) -> Iterator[None]:
        """Call `listener` with a sentence for every long wait, in whatever thread that is."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)


TRAFFIC = Traffic()
