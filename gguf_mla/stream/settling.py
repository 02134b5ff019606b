"""What becomes of unfinished files when a run ends before they are complete."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.files.output import DiskFullError, TakenAwayError, no_room
from gguf_mla.files.stamp import ChangedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gguf_mla.files.output import OutputFile
    from gguf_mla.stream.journal import Journal, NoJournal


@contextmanager
def settled(
    files: Sequence[OutputFile], journal: Journal | NoJournal, stopped: Callable[[], KeyboardInterrupt]
) -> Iterator[None]:
    """Keep what a rerun can continue. After an input error nothing can be: the input has to change first.

    `stopped` says what is raised in the place of an interrupt; MachineError says how much room a full disk lacks.
    """
    try:
        yield
    except BaseException as error:
        keep = journal.nbytes > 0 and not isinstance(error, InputError | ChangedError | TakenAwayError)
        for file in files:
            file.kept = keep
        if not keep:
            _drop(files, journal)
        if isinstance(error, KeyboardInterrupt):
            raise stopped() from None
        if isinstance(error, DiskFullError):
            raise no_room(files[0].path.parent, sum(file.missing for file in files)) from None
        raise


def _drop(files: Sequence[OutputFile], journal: Journal | NoJournal) -> None:
    """Delete what was written, and the journal last: without it nobody would know whose the rest is."""
    for file in files:
        file.drop()
    journal.remove()
