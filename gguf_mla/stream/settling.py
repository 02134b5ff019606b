"""What becomes of unfinished files when a run ends before they are complete."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from gguf_mla.files.output import DiskFullError, no_room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gguf_mla.files.output import OutputFile
    from gguf_mla.stream.books import Books


@contextmanager
def settled(files: Sequence[OutputFile], journal: Books, stopped: Callable[[], KeyboardInterrupt]) -> Iterator[None]:
    """Keep what a rerun can continue.

    `stopped` says what is raised in the place of an interrupt; MachineError says how much room a full disk lacks.
    """
    try:
        yield
    except BaseException as error:
        keep = journal.keeps(error)
        for file in files:
            file.kept = keep
        if not keep:
            _drop(files, journal)
        if isinstance(error, KeyboardInterrupt):
            raise stopped() from None
        if isinstance(error, DiskFullError):
            raise no_room(files[0].path.parent, sum(file.missing for file in files)) from None
        raise


def _drop(files: Sequence[OutputFile], journal: Books) -> None:
    """Delete what was written, and the journal last: without it nobody would know whose the rest is."""
    for file in files:
        file.drop()
    journal.remove()
