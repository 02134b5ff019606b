"""What files a plan becomes: one, or the parts of a split model."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_mla.container.splits import SPLIT_KEYS, part_metadata, part_paths
from gguf_mla.container.writer import lay_out
from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_mla.container.values import Value
    from gguf_mla.container.writer import FileLayout
    from gguf_mla.plan.jobs import Plan, TensorJob


@dataclass(frozen=True)
class PlannedFile:
    """A file to be written: its path, its metadata, and its tensors in order."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: tuple[TensorJob, ...]

    @functools.cached_property
    def layout(self) -> FileLayout:
        """Where everything lies in it; InputError for what no reader would take."""
        return lay_out(self.metadata, [job.spec for job in self.tensors])


Output = Sequence[PlannedFile]  # one plan's files: a single one, or the parts of a split


def single(plan: Plan, path: Path) -> Output:
    """Return a plan as one file; InputError where its metadata say that it is a part of a split model."""
    if keys := SPLIT_KEYS & plan.metadata.keys():
        remedy = "Give --split-max-size or --split-max-tensors to split a model"
        raise InputError(f"{min(keys)} belongs to the parts of a split model only", remedy=remedy)
    return [PlannedFile(path, plan.metadata, plan.tensors)]


def parts(plan: Plan, path: Path, groups: Sequence[slice]) -> Output:
    """Return a plan as the parts of a split model; one group makes one plain file."""
    if len(groups) == 1:
        return single(plan, path)
    count, total = len(groups), len(plan.tensors)
    return [
        PlannedFile(part, part_metadata(plan.metadata, number, count, total), plan.tensors[group])
        for number, (part, group) in enumerate(zip(part_paths(path, count), groups, strict=True))
    ]
