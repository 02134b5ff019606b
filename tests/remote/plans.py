"""What is wrong with a network: faults of its servers, their rate and their latency."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

FAULTS = (
    "429", "503", "expired", "whole", "short", "reset", "wrong-range", "redirect", "stall", "dns", "no-address",
    "huge-header", "packed", "shut",
)  # fmt: skip


class Plan:
    """Which answers of the servers are wrong: every reading may be, after the first `after`, with a chance."""

    def __init__(self, faults: Iterable[str] = (), *, seed: int = 0, chance: float = 1.0, times: int = 3) -> None:
        self.faults, self._chance, self._left = tuple(faults), chance, times
        self._random, self._lock = random.Random(seed), threading.Lock()
        self.planted: Counter[str] = Counter()

    def next(self, where: str) -> str:
        """Return the fault of an answer, "" for none; `where` is "hub" or "cdn"."""
        with self._lock:
            known = [fault for fault in self.faults if (fault in ("dns", "no-address")) == (where == "hub")]
            if not known or self._left <= 0 or self._random.random() >= self._chance:
                return ""
            self._left -= 1
            fault = self._random.choice(known)
            self.planted[fault] += 1
            return fault


@dataclass
class Link:
    """A network's properties: bytes per second of all connections together, and seconds before each answer."""

    rate: float | None = None
    latency: float = 0.0
    _lock: Any = field(default_factory=threading.Lock)
    _free_at: float = 0.0

    def send(self, nbytes: int) -> None:
        """Wait as long as bytes take."""
        if self.rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + nbytes / self.rate
            wait = self._free_at - now
        if wait > 0.002:
            time.sleep(wait)
