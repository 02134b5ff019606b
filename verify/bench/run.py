"""What `gguf-mla bench attention` does: cost computed and measured, in tables or as JSON."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click
import torch

from gguf_mla.cli.document import answer
from gguf_mla.cli.table import table
from gguf_mla.codec.device import open_device
from gguf_mla.forward import attention as forms
from gguf_mla.forward.attention import Inputs
from gguf_mla.forward.on_device import gpu_of
from gguf_mla.text.tokens import read_tokens
from verify.bench import cost, union
from verify.bench.cost import HeadSizes, crossover
from verify.opening import open_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from gguf_mla.forward.attention import Form
    from verify.bench.cost import Cost
    from verify.bench.union import CacheReading

LENGTHS = (1024, 4096)
QUERIES = (1, 16, 64, 128, 192, 256, 512)
SPARSE_LENGTHS = (4096, 16384)
BATCHES = (1, 8, 64, 512)


@dataclass(frozen=True)
class FormLine:
    """Both forms for some queries over a cache: computed cost, measured seconds."""

    cached: int
    queries: int
    vanilla: Cost
    absorbed: Cost
    vanilla_seconds: float
    absorbed_seconds: float


def measure(heads: HeadSizes, lengths: tuple[int, ...], queries: tuple[int, ...]) -> Iterator[FormLine]:
    """Run both forms on random values, which take as long as any; queries are the last of the cached tokens."""
    for cached in lengths:
        for count in (count for count in queries if count <= cached):
            inputs = _random(heads, count, cached)
            vanilla, absorbed = (_seconds(form, inputs) for form in (forms.vanilla, forms.absorbed))
            costs = cost.vanilla(heads, count, cached), cost.absorbed(heads, count, cached)
            yield FormLine(cached, count, *costs, vanilla, absorbed)


def _random(heads: HeadSizes, queries: int, cached: int) -> Inputs:
    random, h = torch.Generator().manual_seed(0), heads
    shapes = (
        (queries, h.heads, h.nope), (queries, h.heads, h.rope), (cached, h.rank), (cached, h.rope),
        (h.heads, h.rank, h.nope), (h.heads, h.value, h.rank),
    )  # fmt: skip
    q_nope, q_pe, latent, k_pe, k_b, v_b = (torch.randn(shape, generator=random) for shape in shapes)
    # so that scores are about 1, as in a model; far larger ones would underflow, which is slow
    mild = float(h.rank) ** -0.5
    return Inputs(q_nope, q_pe, latent, k_pe, k_b * mild, v_b * mild, (h.nope + h.rope) ** -0.5)


def _seconds(form: Form, inputs: Inputs) -> float:
    """Return the better of two runs: the first also warms the caches and the threads up."""
    found = []
    for _ in range(2):
        begin = time.perf_counter()
        form(inputs)
        found.append(time.perf_counter() - begin)
    return min(found)


HEADER = (
    "cached", "queries", "vanilla GFLOP", "absorbed GFLOP", "vanilla MiB", "absorbed MiB", "vanilla ms", "absorbed ms",
    "faster",
)  # fmt: skip
SPARSE_HEADER = (
    "chosen by", "cached", "top-k", "queries", "union", "share", "masked MiB", "union MiB", "each its own MiB",
    "indexer keys MiB",
)  # fmt: skip


def _reading_row(line: CacheReading) -> tuple[str, ...]:
    sizes = (f"{nbytes / (1 << 20):.2f}" for nbytes in (line.masked, line.gathered, line.single, line.keys))
    share = f"{100 * line.share:.1f} %"
    return line.source, str(line.cached), str(line.top_k), str(line.queries), f"{line.union:.0f}", share, *sizes


def _row(line: FormLine) -> tuple[str, ...]:
    cells = (f"{cost.operations / 1e9:.2f}" for cost in (line.vanilla, line.absorbed))
    sizes = (f"{cost.nbytes / (1 << 20):.0f}" for cost in (line.vanilla, line.absorbed))
    seconds = (f"{seconds * 1e3:.1f}" for seconds in (line.vanilla_seconds, line.absorbed_seconds))
    better = "absorbed" if line.absorbed_seconds < line.vanilla_seconds else "vanilla"
    return str(line.cached), str(line.queries), *cells, *sizes, *seconds, better


def attention(
    count: int,
    cached: tuple[int, ...],
    queries: tuple[int, ...],
    sparse: bool,
    model: Path | None,
    tokens: Path | None,
    top_k: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Compare vanilla and absorbed attention, or with `sparse` what masking and gathering read."""
    if sparse:
        lines = _readings(model, tokens, top_k, cached or SPARSE_LENGTHS, queries or BATCHES)
        _print(lines, _reading_row, SPARSE_HEADER, "chosen by", as_json=as_json)
        return
    if device != "cpu":
        _on_device(device, as_json=as_json)
        return
    heads, lengths = HeadSizes(count), cached or LENGTHS
    _print(measure(heads, lengths, queries or QUERIES), _row, HEADER, "faster", as_json=as_json)
    for length in () if as_json else lengths:
        click.echo(f"{length} cached: vanilla computes less from {crossover(heads, length):.0f} queries at once on")


def _on_device(device: str, *, as_json: bool) -> None:
    title = open_device(device).title
    from verify.bench import gpu  # noqa: PLC0415 - numba's CUDA, only where there is a GPU

    lines = list(gpu.lines(gpu=gpu_of(device)))
    if as_json:
        answer(measurements=[asdict(line) for line in lines])
    else:
        click.echo(f"{title}\n\n{gpu.text(lines)}")


def _print(
    lines: Iterable[Any], row: Callable[[Any], tuple[str, ...]], header: tuple[str, ...], left: str, *, as_json: bool
) -> None:
    """Print a table, whose column `left` is aligned to the left, or JSON."""
    if as_json:
        answer(measurements=[asdict(line) for line in lines])
    else:
        click.echo(table(header, map(row, lines), right=",".join(name for name in header if name != left)))


def _readings(
    path: Path | None, tokens: Path | None, top_k: int | None, cached: tuple[int, ...], batches: tuple[int, ...]
) -> Iterator[CacheReading]:
    if path is None:
        yield from union.simulated(cached, batches)
        return
    reference = open_reference(path)
    ids = read_tokens(None, tokens, reference.encode, reference.weights.model.vocab)
    for length in cached:
        yield from union.measured(reference.weights, ids[:length], batches, top_k)
