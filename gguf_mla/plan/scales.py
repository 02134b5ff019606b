"""Scales beside weights: what a block type leaves out of a stored weight goes into a tensor NAME.scale.

Rows of NVFP4 can be moved bit for bit, and ggml's blocks have no place for the one scale of the whole tensor. Some of
llama.cpp's graphs read it from `blk.N.ffn_up.scale`, float32 [1], or `blk.N.ffn_up_exps.scale`, a number for each
expert, and multiply the products with it. That of deepseek2 does not (tried with b11549), so it has to be asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.plan.jobs import Part, TensorJob

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from gguf_mla.sources.tensor import SourceTensor

SUFFIX = ".scale"


@dataclass(frozen=True)
class Factors:
    """A SourceTensor of numbers that are known already."""

    name: str
    numbers: tuple[float, ...]

    raw_type, stored, values = None, "F32", "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """One row."""
        return (len(self.numbers),)

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return the row, float32 [1, n]."""
        return np.array([self.numbers], np.float32)[start:stop]

    def will_read(self, start: int, stop: int) -> None:
        """Do nothing: they are here."""

    def was_read(self, start: int, stop: int) -> None:
        """Do nothing: they are small."""


def leaves_out(source: SourceTensor) -> bool:
    """Whether the raw rows of a source lack a scale."""
    return _factor_of(source) != 1


def _factor_of(source: SourceTensor) -> float:
    """Return what raw rows are to be multiplied with: the `factor` of a source that leaves a scale out."""
    return float(getattr(source, "factor", 1))  # asked of every expert of a model: a Protocol would take seconds


def with_scales(jobs: Iterable[TensorJob], sources: Mapping[str, SourceTensor]) -> Iterator[TensorJob]:
    """Yield jobs, after each whose rows leave a scale out one for that; InputError for a scale that cannot be used."""
    for job in jobs:
        yield job
        if factors := _factors(job, sources):
            name = _beside(job.name)
            reason = f"what blocks of {job.type} leave out"
            yield TensorJob(name, (len(factors),), "F32", (Part(name, 0, 1),), "F32", reason)


def scale_sources(jobs: Sequence[TensorJob], sources: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Return the sources of the scales among some jobs."""
    scales = {job.name for job in jobs if job.name.endswith(SUFFIX)}
    found = {_beside(job.name): _factors(job, sources) for job in jobs if scales and _beside(job.name) != job.name}
    return {name: Factors(name, found[name]) for name in scales if found.get(name)}


def _beside(name: str) -> str:
    return name.removesuffix(".weight") + SUFFIX if name.endswith(".weight") else name


def _factors(job: TensorJob, sources: Mapping[str, SourceTensor]) -> tuple[float, ...]:
    """Return a number for each part of a job that has to be multiplied with it; () where nothing is left out."""
    left_out = [_factor(part, job.type, sources) for part in job.parts]
    if all(factor is None for factor in left_out):
        return ()
    return tuple(1.0 if factor is None else factor for factor in left_out)


def _factor(part: Part, kind: str, sources: Mapping[str, SourceTensor]) -> float | None:
    source = sources.get(part.source)  # none for a scale among the jobs
    if source is None or source.raw_type != kind or part.transposed:
        return None  # not copied, so nothing is left out
    factor = _factor_of(source)
    return None if factor == 1 else factor
