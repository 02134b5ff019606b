"""How far attention on this GPU is from what its memory and its arithmetic allow.

A kernel cannot be faster than its bytes through memory, nor than its float32 operations through the multiprocessors.
Decoding with one head would wait for memory; with DeepSeek's 128 heads on one row of float32 there are 120 operations
to a byte, and both forms wait for arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import cuda

from gguf_mla.cli.table import table
from gguf_mla.forward.attention import Pages, RowLayout
from gguf_mla.forward.cuda.attend import Row
from gguf_mla.forward.cuda.attention import Work, parts_of, prepare, row_of
from gguf_mla.forward.cuda.device import explained, require
from verify.bench.cost import VALUE_BYTES, Cost, HeadSizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

REPEATS = 10
COPIED = 1 << 28  # bytes of the copy that memory is measured with
PAGE = 64
# float32 units of a multiprocessor by compute capability: the CUDA programming guide's table of throughputs.
UNITS = {(6, 0): 64, (7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64}
UNITS_ELSEWHERE = 128


@dataclass(frozen=True)
class Peak:
    """What a GPU could do: bytes per second through its memory, float32 operations per second."""

    nbytes: float
    operations: float


@dataclass(frozen=True)
class GpuLine:
    """One kernel: what it had to do, how long it took, and what part of the time either bound alone would take."""

    name: str
    cost: Cost
    seconds: float
    of_bytes: float
    of_operations: float


def peak() -> Peak:
    """Return this GPU's bounds, from its own clocks, bus and number of multiprocessors."""
    device = cuda.get_current_device()
    units = UNITS.get(tuple(device.compute_capability), UNITS_ELSEWHERE) * device.MULTIPROCESSOR_COUNT
    # two transfers per clock, two operations per fused multiplication and addition; clocks are in kHz, the bus in bits
    transfers = 2 * device.MEMORY_CLOCK_RATE * 1e3 * device.GLOBAL_MEMORY_BUS_WIDTH / 8
    return Peak(transfers, 2 * units * device.CLOCK_RATE * 1e3)


def lines(
    heads: HeadSizes | None = None,
    *,
    batch: int = 16,
    cached: int = 8192,
    queries: int = 1024,
    bounds: Peak | None = None,
    repeats: int = REPEATS,
    gpu: int = 0,
) -> Iterator[GpuLine]:
    """Measure a copy, paged decoding of a batch, and prefill of some queries in both forms; MachineError without a GPU.

    heads    head sizes, by default DeepSeek-V3's
    batch    requests of the batch, each with `cached` tokens
    queries  tokens of the prefill, without any before them
    """
    require(gpu)
    with cuda.gpus[gpu], explained():
        heads, bounds = heads or HeadSizes(), bounds or peak()
        yield _copy(bounds, repeats)
        yield _attention("paged decode", _decode(heads, batch, cached), bounds, repeats)
        yield _attention("prefill, vanilla", _prefill(heads, queries), bounds, repeats)
        yield _attention("prefill, absorbed", _absorbed(heads, queries), bounds, repeats)


def _attention(name: str, work: Work, bounds: Peak, repeats: int) -> GpuLine:
    run, _, _ = prepare(work, parts_of(work))
    return _line(name, _cost(work), _seconds(run, repeats), bounds)


def text(found: Iterable[GpuLine]) -> str:
    """Return lines as a table."""
    columns = ("kernel", "ms", "GB/s", "of memory", "TFLOP/s", "of arithmetic")
    return table(columns, map(_row, found), right=",".join(columns[1:]))


def _row(line: GpuLine) -> tuple[str, ...]:
    per_second = 1 / line.seconds if line.seconds else 0.0
    moved, computed = line.cost.nbytes / 1e9 * per_second, line.cost.operations / 1e12 * per_second
    shares = f"{line.of_bytes:.0%}", f"{line.of_operations:.0%}"
    return line.name, f"{line.seconds * 1e3:.3f}", f"{moved:.0f}", shares[0], f"{computed:.2f}", shares[1]


def _copy(bounds: Peak, repeats: int) -> GpuLine:
    source = cuda.device_array(COPIED // VALUE_BYTES, np.float32)
    target = cuda.device_array_like(source)
    seconds = _seconds(lambda: target.copy_to_device(source), repeats)
    return _line("copy", Cost(0, 2 * COPIED), seconds, bounds)


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    """Return the median time of a run; one before compiles it and warms the GPU up."""
    run()
    found: list[float] = []
    for _ in range(repeats):
        start, stop = cuda.event(), cuda.event()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        found.append(start.elapsed_time(stop) / 1e3)
    return median(found)


def _line(name: str, cost: Cost, seconds: float, bounds: Peak) -> GpuLine:
    moved, computed = cost.nbytes / bounds.nbytes, cost.operations / bounds.operations
    return GpuLine(name, cost, seconds, *(least / seconds if seconds else 0.0 for least in (moved, computed)))


def _cost(work: Work) -> Cost:
    """Return what this work has to compute, and to read and write at least."""
    requests, count, key = work.queries.shape
    lengths = work.lengths.copy_to_host()
    tokens = count // work.per_token
    seen = int(work.per_token * (tokens * lengths - tokens * (tokens - 1) // 2).sum())
    values = requests * count * (key + work.row.value) + int(lengths.sum()) * work.row.width
    return Cost(2 * seen * (key + work.row.value), VALUE_BYTES * values)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _decode(heads: HeadSizes, batch: int, cached: int) -> Work:
    """Return a batch of requests of one length, whose pages lie mixed."""
    row = row_of(RowLayout(heads.rank, heads.rope))
    count = -(-cached // PAGE)
    order = torch.randperm(batch * count, generator=torch.Generator().manual_seed(1))
    starts, lengths = torch.arange(batch + 1) * count, torch.full((batch,), cached)
    pages = Pages(_random(batch * count, PAGE, row.width), starts, order, lengths)
    return Work.sent(row, _random(batch, heads.heads, row.key), pages, heads.heads, row.key**-0.5)


def _prefill(heads: HeadSizes, queries: int) -> Work:
    """Return the vanilla form: every head a request with rows of its own."""
    key = heads.nope + heads.rope
    row = Row(key + heads.value, key, key, heads.value)
    starts, lengths = torch.arange(heads.heads + 1), torch.full((heads.heads,), queries)
    pages = Pages(_random(heads.heads, queries, row.width), starts, starts[:-1], lengths)
    return Work.sent(row, _random(heads.heads, queries, key), pages, 1, key**-0.5)


def _absorbed(heads: HeadSizes, queries: int) -> Work:
    """Return the absorbed form: one request, all heads on the same rows."""
    row = row_of(RowLayout(heads.rank, heads.rope))
    pages = Pages(_random(1, queries, row.width), *map(torch.tensor, ([0, 1], [0], [queries])))
    return Work.sent(row, _random(1, queries * heads.heads, row.key), pages, heads.heads, row.key**-0.5)
