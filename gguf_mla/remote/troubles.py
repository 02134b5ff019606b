"""Failures of a network that may pass: how long to wait after each, and when to give up."""

from __future__ import annotations

import email.utils
import random
import re
import time
from typing import TYPE_CHECKING

from gguf_mla.errors import MachineError
from gguf_mla.remote.traffic import TRAFFIC

if TYPE_CHECKING:
    from collections.abc import Mapping

PATIENCE = 180.0  # seconds without a byte after which a run gives up; what a server asks to wait is not counted
FIRST_PATIENCE = 20.0  # the same before anything has come at all
FIRST_PAUSE = 0.5  # seconds before a second attempt, doubled with each failure
LONGEST_PAUSE = 20.0  # seconds between two attempts, if the server says nothing
LONGEST_ASKED = 1800.0  # seconds that a server may ask to wait
SAME_ANSWERS = 6  # wrong answers in a row, which waiting rarely cures
_RESET = re.compile(r";\s*r\s*=\s*(\d+)\s*;\s*t\s*=\s*(\d+)")


class Trouble(Exception):  # noqa: N818 - it may pass
    """An attempt that failed and may be repeated.

    what    a clause that says what happened
    asked   seconds that the server asks to wait
    wrong   whether the server answered, but not what it was asked for
    """

    def __init__(self, what: str, *, asked: float | None = None, wrong: bool = False) -> None:
        super().__init__(what)
        self.what, self.asked, self.wrong = what, asked, wrong


class Patience:
    """What is left of it for one piece of work; `name` is the file's, for the error when there is none left.

    failed  what that error says has failed
    """

    def __init__(self, name: str, seconds: float | None = None, failed: str = "cannot be read") -> None:
        self._name, self._seconds, self._failed = name, PATIENCE if seconds is None else seconds, failed
        self.renew()

    def renew(self) -> None:
        """Begin anew: something has come."""
        self._failures = self._wrong = 0
        self._until = time.monotonic() + self._seconds

    def wait(self, trouble: Trouble) -> None:
        """Wait before the next attempt; MachineError when there should be none."""
        self._failures += 1
        self._wrong += trouble.wrong
        seconds = self._pause(trouble)
        if self._wrong >= SAME_ANSWERS or time.monotonic() + seconds > self._until:
            raise MachineError(
                f"{self._failed}: {trouble.what}, {self._failures} times in a row",
                file=self._name,
                remedy="Run the same command again once the connection is better; it goes on from where it stopped",
            )
        TRAFFIC.retried(trouble.what, seconds, asked=trouble.asked is not None)
        try:
            time.sleep(seconds)
        finally:
            TRAFFIC.waited(seconds)

    def _pause(self, trouble: Trouble) -> float:
        if trouble.asked is None:
            return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._failures - 1)) * random.uniform(0.7, 1.0))  # noqa: S311
        if trouble.asked > LONGEST_ASKED:
            raise MachineError(
                f"{self._failed}: the server asks to wait for {trouble.asked:.0f} seconds",
                file=self._name,
                remedy="Run the same command again then; it goes on from where it stopped",
            )
        self._until += trouble.asked
        return trouble.asked


def asked_seconds(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a server asks to wait, by Retry-After or by RateLimit; None if it does not say."""
    after = headers.get("retry-after", "").strip()
    if after.isdecimal():
        return float(after[:9])
    if after and (date := _date(after)) is not None:
        return max(0.0, date - time.time())
    limit = _RESET.search(headers.get("ratelimit", ""))
    return float(limit[2][:9]) if limit and int(limit[1][:9]) == 0 else None


def _date(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
