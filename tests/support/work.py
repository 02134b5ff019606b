"""How much a call does, counted instead of timed: the same on every machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import FrameType


class Work:
    """Counts the functions called inside a `with` block, Python's and C's."""

    calls = 0

    def __enter__(self) -> Self:
        self._outer = sys.getprofile()
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_error: object) -> None:
        sys.setprofile(self._outer)

    def _count(self, _frame: FrameType, event: str, _argument: Any) -> None:
        self.calls += event in ("call", "c_call")
