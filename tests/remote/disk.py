"""How much of the disk a run takes while it runs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

LOOK = 0.005  # seconds between two looks


class Disk:
    """Looks at a directory as a context; `most` is how many bytes its files took at the same time."""

    def __init__(self, directory: Path) -> None:
        self._directory, self.most = directory, 0
        self._over, self._thread = threading.Event(), threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK):
            self.most = max(self.most, sum(map(_taken, self._directory.iterdir())))


def _taken(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
