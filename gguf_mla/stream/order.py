"""The order of a run's tasks: that of the output, or where files are far away, that in which they lie there."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from gguf_mla.files.readable import Elsewhere
from gguf_mla.stream.engine import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from gguf_mla.files.readable import AnyPath, Tape
    from gguf_mla.sources.tensor import SourceTensor
    from gguf_mla.stream.chunks import PlacedPart

AHEAD = 1024  # tasks that a tape hears of before a worker takes them: a gigabyte or two


def tape_of(inputs: Iterable[AnyPath]) -> Tape | None:
    """Return how the inputs of a run are read where some are far away; None where all are on this machine."""
    return next((path.tape for path in inputs if isinstance(path, Elsewhere)), None)


def arranged(
    parts: Iterable[PlacedPart],
    sources: Mapping[str, SourceTensor],
    tape: Tape | None,
    group: Callable[[PlacedPart], tuple[int, ...]] = lambda _: (),
) -> Iterator[Task]:
    """Yield all tasks of some parts in the order of the output, or of the files of a tape; each has the same number.

    What is of one `group` comes together, in the order of the groups.
    """
    if tape is None:
        for placed in parts:
            yield from placed.tasks()
        return

    def place(placed: PlacedPart) -> tuple[tuple[int, ...], int, int]:
        part = placed.part
        return group(placed), *tape.place(lambda: sources[part.source].will_read(part.start, part.stop))

    for placed in sorted(parts, key=place):
        yield from placed.tasks()


def announced(queue: Iterable[Task], tape: Tape | None, expect: Callable[[Task], object]) -> Iterator[Task]:
    """Yield tasks, each after a tape has heard of many more."""
    if tape is None:
        yield from queue
        return
    tape.begin()
    waiting = deque[Task]()
    for task in queue:
        _hear(tape, task, expect)
        waiting.append(task)
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    tape.heard_all()
    yield from waiting


def _hear(tape: Tape, task: Task, expect: Callable[[Task], object]) -> None:
    tape.hear(lambda: expect(task))
