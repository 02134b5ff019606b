"""What each ggml type would cost a tensor in accuracy, measured on a few of its rows."""

from __future__ import annotations

import bisect
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla import codec
from gguf_mla.files import platform
from gguf_mla.ggtypes.shared import floats
from gguf_mla.sources.finite import check_finite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from gguf_mla.plan.jobs import Importance, Untyped
    from gguf_mla.sources.tensor import SourceTensor

RUNS, ROWS = 4, 4  # runs of neighbouring rows, evenly over the tensor: of 256 experts, four


def errors(
    tensors: Sequence[Untyped],
    types: Sequence[Sequence[str]],
    sources: Mapping[str, SourceTensor],
    importance: Importance | None = None,
    threads: int | None = None,
) -> Iterator[dict[str, float]]:
    """Yield, for each tensor, the relative squared error of each of its `types`: |x - decoded|² / |x|².

    With importance, squares are weighed by it. Deterministic: the same rows every time. InputError for a weight that is
    not finite.
    """

    def measure(job: tuple[Untyped, Sequence[str]]) -> dict[str, float]:
        samples = list(_samples(job[0], sources, importance))
        return {kind: _error(samples, kind) for kind in job[1]}

    with ThreadPoolExecutor(threads or platform.cores()) as pool:
        yield from pool.map(measure, zip(tensors, types, strict=True))


def _samples(
    tensor: Untyped, sources: Mapping[str, SourceTensor], importance: Importance | None
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
    """Yield runs of rows, float32 [rows, cols], each with its importance [cols]."""
    weights = importance.rows(tensor.name, tensor.shape) if importance else None
    rows = math.prod(tensor.shape[:-1])
    ends = list(itertools.accumulate(part.rows for part in tensor.parts))
    for run in range(RUNS):
        row = rows * (2 * run + 1) // (2 * RUNS)
        index = bisect.bisect_right(ends, row)
        part = tensor.parts[index]
        start = min(row - (ends[index] - part.rows), max(0, part.rows - ROWS))
        source = sources[part.source]
        first, last = (part.start, part.stop) if part.transposed else (part.start + start, part.start + start + ROWS)
        read = source.read(first, min(last, part.stop))
        check_finite(read, first, source)
        values = floats.to_float32(read, source.values)
        kept = np.ascontiguousarray(values.T[start : start + ROWS]) if part.transposed else values
        yield kept, None if weights is None else weights[index % len(weights)]


def _error(samples: Sequence[tuple[NDArray[np.float32], NDArray[np.float32] | None]], kind: str) -> float:
    lost = total = 0.0
    for x, weights in samples:
        decoded = codec.decode(codec.encode(x, kind, importance=weights, check=False), kind)
        weigh = np.float32(1) if weights is None else weights
        lost += float(np.sum(weigh * (x - decoded) ** 2, dtype=np.float64))
        total += float(np.sum(weigh * x**2, dtype=np.float64))
    return lost / total if total else 0.0
