"""What a run would be refused for before its first byte, found without changing anything."""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING

from gguf_mla.files import platform
from gguf_mla.files.guard import check_free, partial_path
from gguf_mla.files.locked import check_ours, impossible
from gguf_mla.files.output import check_known, no_room, unwritable
from gguf_mla.files.platform import free_bytes
from gguf_mla.stream.goal import Goal
from gguf_mla.stream.identity import identity
from gguf_mla.stream.journal import foreseen, is_named_by, journal_path, journal_room

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from gguf_mla.files.output import Extra
    from gguf_mla.plan.jobs import Importance
    from gguf_mla.plan.outputs import Output
    from gguf_mla.stream.delivery import Sink
    from gguf_mla.stream.execute import Resumption


def rehearse(
    outputs: Sequence[Output],
    *,
    importance: Importance,
    resumption: Resumption,
    overwrite: bool,
    extras: Sequence[Extra],
    outdated: Sequence[Path],
    sink: Sink | None = None,
) -> list[str]:
    """Raise what `execute` would raise before it writes, with the same arguments, and return what room it would lack.

    InputError for an unfinished run of something else, and for names that are taken. Room is not judged: a plan may be
    made on another machine than the run. What only reading the weights shows is not found here.
    """
    goal = Goal.of(outputs, extras, outdated, overwrite=overwrite, passing=sink is not None and not sink.keeps)
    out = goal.planned[0].path
    if os.path.lexists(journal_path(out)):
        check_ours(journal_path(out), journal_path(out).lstat())
    stated = partial(identity, goal.planned, goal.layouts, resumption.inputs, importance)
    past = foreseen(out, stated, len(outputs), fresh=resumption.fresh)
    for path, _ in goal.sizes:
        if not is_named_by(past.marks, path):
            check_free(path, overwrite=goal.may_replace(path))
    _check_writable(parent_of(out))
    taken = sum(_taken(path, past.files) for path, _ in goal.sizes)
    return list(_lacking(goal, taken))


def parent_of(path: Path) -> Path:
    """Return the directory of a file, or where that is still to be created the nearest that is there."""
    return next((place for place in path.absolute().parents if place.is_dir()), path.parent)


def _check_writable(directory: Path) -> None:
    if not os.access(directory, os.W_OK | os.X_OK):
        raise impossible(directory, os.strerror(errno.EACCES))


def _taken(path: Path, known: Mapping[str, int]) -> int:
    """Return how much of the disk an output has by now, under either name; InputError for a stranger's file."""
    partial = partial_path(path)
    if not os.path.lexists(partial):
        return 0
    status = partial.lstat()
    check_ours(partial, status)
    check_known(partial, status, known.get(path.name))
    return int(getattr(status, "st_blocks", 0)) * 512


def _lacking(goal: Goal, taken: int) -> Iterator[str]:
    """Yield the errors of a run that would lack room, as sentences."""
    directory = parent_of(goal.planned[0].path)
    most = sum(size for _, size in goal.sizes) if goal.at_once is None else goal.at_once
    needed = most + journal_room(goal.nbytes) - taken
    if needed > free_bytes(directory):
        yield str(no_room(directory, needed))
    limit = platform.file_limit()
    for path, size in goal.sizes:
        if limit is not None and size > limit:
            yield str(unwritable(path, OSError(errno.EFBIG, os.strerror(errno.EFBIG))))
