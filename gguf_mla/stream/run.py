"""What one run writes, as a command hands it over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from gguf_mla.files.output import Extra
    from gguf_mla.files.readable import AnyPath
    from gguf_mla.plan.jobs import Importance, Plan
    from gguf_mla.plan.outputs import Output
    from gguf_mla.sources.tensor import SourceTensor


@dataclass(frozen=True)
class Job:
    """Plans that are written in one pass from the same sources.

    outputs    each plan with the files it becomes
    inputs     the files whose content decides that of the outputs: weights, importance
    protected  further files that no output may replace
    remarks    turns what reading the sources has shown into sentences, when all is written
    extras     files that are written and named together with the outputs
    directories  those of outputs that are created where they are missing
    consumed   inputs that are removed when all is written
    """

    outputs: Sequence[tuple[Plan, Output]]
    sources: Mapping[str, SourceTensor]
    inputs: Sequence[AnyPath]
    importance: Importance | None = None
    protected: Iterable[AnyPath] = ()
    remarks: Callable[[Sequence[Any]], Sequence[str]] = lambda _: ()
    extras: Sequence[Extra] = ()
    directories: Sequence[Path] = ()
    consumed: Sequence[Path] = ()
