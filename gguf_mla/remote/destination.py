"""What all places for finished files have in common, and what many workers of one run leave there for each other."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gguf_mla import units
from gguf_mla.remote.outgoing import SENT, Content, Journey, content

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Read = Callable[[str], str | None]  # a small file that is there, by name; None where there is none
    Receipt = Mapping[str, Any]
    Describe = Callable[[Mapping[str, Receipt], Read], Mapping[str, str]]


@dataclass
class Published:
    """What has become of an upload.

    repository  where it went
    commit      that shows the files, and `url` its page
    files       that were taken, and their bytes together
    sent        bytes that went over the network: those of files that were there already did not
    """

    repository: str
    url: str = ""
    commit: str = ""
    files: int = 0
    bytes: int = 0
    sent: int = 0


class Shelf(Protocol):
    """Small files beside the large ones, by which those who work on one run know of each other."""

    def names(self) -> list[str]:
        """Return what is there; MachineError when that cannot be known."""

    def read(self, name: str, /) -> bytes | None:
        """Return what a file holds, None where there is none."""

    def write(self, name: str, content: bytes, /) -> None:
        """Write a file, which is there whole or not at all."""

    def remove(self) -> None:
        """Remove all of them."""


class Destination(ABC):
    """A sink for the files of a run (gguf_mla.stream.delivery.Sink).

    called    how errors name the place
    names     what each output is called there
    describe  makes the small files that go with the others, from all receipts and from what is there
    keeps     whether files stay on this machine, too

    published  what has become of it
    sums       the SHA-256 of outputs
    """

    def __init__(self, called: str, names: Mapping[Path, str], describe: Describe, *, keeps: bool) -> None:
        self.called, self.keeps, self._names, self._describe = called, keeps, names, describe
        self.published = Published(called)
        self.sums: dict[Path, str] = {}
        self._journey = Journey()

    @abstractmethod
    def open(self, *, create: bool) -> None:
        """Raise InputError where nothing can be uploaded; `create` what is missing of the place."""

    @abstractmethod
    def has(self, receipts: Mapping[str, Receipt]) -> set[str]:
        """Return which files of an earlier run are still there."""

    @abstractmethod
    def take(self, path: Path, built: Path) -> dict[str, Any]:
        """Send a file, unless it is there, and return what `has` and `publish` need; MachineError where it fails."""

    @abstractmethod
    def publish(self, receipts: Mapping[str, Receipt]) -> None:
        """Have everybody see that all files are there; MachineError where that fails, which loses nothing."""

    @abstractmethod
    def shelf(self) -> Shelf:
        """Return where those leave notes who work on the same outputs."""

    @property
    def first(self) -> str:
        """The name of the first output there."""
        return next(iter(self._names.values()))

    def takes(self, path: Path) -> bool:
        """Whether an output goes there; notes about others do not."""
        return path in self._names

    def name(self, path: Path) -> str:
        """Return the name of an output there."""
        return self._names[path]

    def stop(self) -> None:
        """End what is on its way."""
        self._journey.stopped.set()

    def state(self) -> str:
        """Return how far the file is that is on its way, in words; "" where none is."""
        journey = self._journey
        if not journey.name:
            return ""
        share = f"{journey.at / max(1, journey.size):.0%}"
        if not journey.sending:
            return f"upload of {journey.name}: hashed {share}"
        return f"upload of {journey.name}: {share}, {units.size(SENT.rate())}/s"

    def _hashed(self, name: str, built: Path) -> tuple[Content, dict[str, Any]]:
        """Read a file, and return what it is and what a receipt says of that."""
        self._journey.begin(name, built.stat().st_size, sending=False)
        found = content(built, self._journey)
        return found, found._asdict() | {"sample": base64.b64encode(found.sample).decode()}

    def _count(self, found: Content, sent: int) -> None:
        self.published.sent += min(sent, found.size)

    def _sum_up(self, receipts: Mapping[str, Receipt]) -> None:
        self.published.files = len(receipts)
        self.published.bytes = sum(receipt["size"] for receipt in receipts.values())
        self.sums = {path: receipts[name]["sha256"] for path, name in self._names.items() if name in receipts}
