"""What a run knows of an earlier one, and notes for a later one: a journal's part, or that of notes of many workers."""

from __future__ import annotations

from array import array
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from gguf_mla.files.output import NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from gguf_mla.files.guard import Mark
    from gguf_mla.stream.engine import Done, Sums


class Claims:
    """Checksums by task number, in twelve bytes each: a large model has a million tasks.

    `nbytes` is how many bytes the tasks have together.
    """

    def __init__(self, lines: Iterable[str] = (), outputs: int = 1) -> None:
        numbers, sums = array("Q"), array("L")
        self.nbytes = 0
        for line in lines:
            number, nbytes, *values = line.split()
            numbers.append(int(number))
            sums.extend(int(value, 16) for value in values)
            self.nbytes += int(nbytes)
        found = np.array(numbers, np.uint64)
        order = np.argsort(found, kind="stable")
        self._numbers = found[order]
        self._sums = np.array(sums, np.uint32).reshape(-1, outputs)[order]

    def of(self, number: int) -> Sums | None:
        """Return the checksums of a task, the last that were noted; None if it is not known."""
        at = int(np.searchsorted(self._numbers, np.uint64(number), side="right")) - 1
        if at < 0 or self._numbers[at] != number:
            return None
        return tuple(map(int, self._sums[at]))


class Books(Protocol):
    """What is known of a run's tasks that were done before, and is noted of those that are done now.

    claims     checksums of what is there already
    nbytes     how many bytes that are
    delivered  the files that a sink took in an earlier run: its receipts by its names for them
    """

    @property
    def claims(self) -> Claims: ...  # noqa: D102 - above

    @property
    def nbytes(self) -> int: ...  # noqa: D102 - above

    @property
    def delivered(self) -> Mapping[str, Mapping[str, Any]]: ...  # noqa: D102 - above

    def known_of(self, path: Path) -> Mapping[str, int]:
        """Return the inode of the unfinished file of an output by its name, as OutputFile takes it."""

    def take_back(self) -> None:
        """Give files their unfinished names again where a run was stopped between naming the first and the last."""

    def begin(self, files: Mapping[Path, int], /) -> None:
        """Note that the work begins, and the inodes of the unfinished files, by output."""

    def record(self, written: Sequence[Done], /) -> None:
        """Note tasks whose bytes are on the disk."""

    def deliver(self, name: str, receipt: Mapping[str, Any], /) -> None:
        """Note that a sink has a file."""

    def finish(self, marks: Mapping[Path, Mark], /) -> None:
        """Note that everything is on the disk and the files are about to be named, and what tells each from others."""

    def keeps(self, error: BaseException, /) -> bool:
        """Whether what was written is kept when this has ended the run."""

    def remove(self) -> None:
        """Forget everything."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class NoJournal:
    """The journal of a run that is not to be continued: it knows nothing and notes nothing."""

    claims = Claims()
    nbytes = 0
    delivered: Mapping[str, Mapping[str, Any]] = MappingProxyType({})

    def known_of(self, _: Path) -> Mapping[str, int]:
        """Nothing is known."""
        return NOTHING

    def take_back(self) -> None:
        """Nothing was named."""

    def begin(self, files: Mapping[Path, int]) -> None:
        """Note nothing."""

    def record(self, written: Sequence[Done]) -> None:
        """Note nothing."""

    def deliver(self, name: str, receipt: Mapping[str, Any]) -> None:
        """Note nothing."""

    def finish(self, marks: Mapping[Path, Mark]) -> None:
        """Note nothing."""

    def keeps(self, _: BaseException) -> bool:
        """Keep nothing: nobody could go on with it."""
        return False

    def remove(self) -> None:
        """There is nothing to delete."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to close."""
