"""What a run writes, laid out before its first byte."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Self

from gguf_mla.files import checksums

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gguf_mla.container.writer import FileLayout
    from gguf_mla.files.output import Extra
    from gguf_mla.plan.outputs import Output, PlannedFile


@dataclass(frozen=True)
class Goal:
    """What a run writes, and what of it may be in the way.

    planned    the GGUF files of all outputs, in file order, and where everything lies in each (`layouts`)
    extras     what is written beside them when they are complete
    outdated   notes about older outputs, which go
    overwrite  whether an older file of an output's name is replaced
    places     which file of its output each GGUF file is, from 0
    passing    whether files go when they are complete, so that of an output two are there at most
    """

    planned: Sequence[PlannedFile]
    layouts: Sequence[FileLayout]
    extras: Sequence[Extra]
    outdated: Sequence[Path]
    overwrite: bool
    places: Sequence[int] = ()
    passing: bool = False

    @classmethod
    def of(
        cls,
        outputs: Sequence[Output],
        extras: Sequence[Extra] = (),
        outdated: Sequence[Path] = (),
        *,
        overwrite: bool = False,
        passing: bool = False,
    ) -> Self:
        """Lay out every file of the outputs."""
        planned = [file for output in outputs for file in output]
        places = [place for output in outputs for place in range(len(output))]
        return cls(planned, [file.layout for file in planned], extras, outdated, overwrite, places, passing)

    @property
    def nbytes(self) -> int:
        """Size of the GGUF files together."""
        return sum(layout.size for layout in self.layouts)

    @property
    def sizes(self) -> list[tuple[Path, int]]:
        """Every file with its size, the extras last."""
        files = [(file.path, layout.size) for file, layout in zip(self.planned, self.layouts, strict=True)]
        return files + [(extra.path, extra.size) for extra in self.extras]

    @property
    def at_once(self) -> int | None:
        """Bytes that the files take at the same time, at most; None where all are there in the end."""
        if not self.passing:
            return None
        starts = [number for number, place in enumerate(self.places) if place == 0]
        ends = [*starts[1:], len(self.places)]
        outputs = [[layout.size for layout in self.layouts[start:end]] for start, end in zip(starts, ends, strict=True)]
        most = sum(max((a + b for a, b in pairwise(sizes)), default=sizes[0]) for sizes in outputs)
        return most + sum(extra.size for extra in self.extras)

    def may_replace(self, path: Path) -> bool:
        """Whether what is there may go: a note about an older output always, another file with `overwrite`."""
        return checksums.is_note(path) if path in self.outdated else self.overwrite
