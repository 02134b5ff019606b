"""`gguf-mla bench attention`: when to absorb, computed and measured."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from verify.attention import Form, Inputs
    from verify.cost import Cost, Heads

LENGTHS = (1024, 4096)
QUERIES = (1, 16, 64, 128, 192, 256, 512)


@dataclass(frozen=True)
class Line:
    """Both forms for some queries over a cache: computed cost, measured seconds."""

    cached: int
    queries: int
    vanilla: Cost
    absorbed: Cost
    vanilla_seconds: float
    absorbed_seconds: float


def measure(heads: Heads, lengths: tuple[int, ...], queries: tuple[int, ...]) -> Iterator[Line]:
    """Run both forms on random values, which take as long as any; queries are the last of the cached tokens."""
    from verify import attention, cost  # noqa: PLC0415 - `--help` must not pay for numpy

    for cached in lengths:
        for count in (count for count in queries if count <= cached):
            inputs = _random(heads, count, cached)
            vanilla, absorbed = (_seconds(form, inputs) for form in (attention.vanilla, attention.absorbed))
            costs = cost.vanilla(heads, count, cached), cost.absorbed(heads, count, cached)
            yield Line(cached, count, *costs, vanilla, absorbed)


def _random(heads: Heads, queries: int, cached: int) -> Inputs:
    import numpy as np  # noqa: PLC0415 - not for `--help`

    from verify.attention import Inputs  # noqa: PLC0415

    rng, h = np.random.default_rng(0), heads
    shapes = (
        (queries, h.heads, h.nope), (queries, h.heads, h.rope), (cached, h.rank), (cached, h.rope),
        (h.heads, h.rank, h.nope), (h.heads, h.value, h.rank),
    )  # fmt: skip
    q_nope, q_pe, latent, k_pe, k_b, v_b = (rng.standard_normal(shape, np.float32) for shape in shapes)
    # so that scores are about 1, as in a model; far larger ones would underflow, which is slow
    mild = np.float32(h.rank**-0.5)
    return Inputs(q_nope, q_pe, latent, k_pe, k_b * mild, v_b * mild, (h.nope + h.rope) ** -0.5)


def _seconds(form: Form, inputs: Inputs) -> float:
    """Return the better of two runs: the first also warms the caches and the threads up."""
    found = []
    for _ in range(2):
        begin = time.perf_counter()
        form(inputs)
        found.append(time.perf_counter() - begin)
    return min(found)


def _row(line: Line) -> tuple[str, ...]:
    cells = (f"{cost.operations / 1e9:.2f}" for cost in (line.vanilla, line.absorbed))
    sizes = (f"{cost.nbytes / (1 << 20):.0f}" for cost in (line.vanilla, line.absorbed))
    seconds = (f"{seconds * 1e3:.1f}" for seconds in (line.vanilla_seconds, line.absorbed_seconds))
    better = "absorbed" if line.absorbed_seconds < line.vanilla_seconds else "vanilla"
    return str(line.cached), str(line.queries), *cells, *sizes, *seconds, better


@click.command()
@click.option("--heads", "count", default=16, show_default=True, help="Heads to measure with; V3 has 128.")
@click.option("--cached", type=int, multiple=True, default=LENGTHS, show_default=True, help="Cached tokens.")
@click.option("--queries", type=int, multiple=True, default=QUERIES, show_default=True, help="Queries at once.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def attention(count: int, cached: tuple[int, ...], queries: tuple[int, ...], as_json: bool) -> None:
    """When to absorb: operations, bytes and time of vanilla and absorbed attention, DeepSeek's head sizes."""
    from gguf_mla import tables  # noqa: PLC0415 - `--help` must not pay for it
    from verify.cost import Heads, crossover  # noqa: PLC0415

    heads = Heads(count)
    lines = list(measure(heads, cached, queries))
    if as_json:
        click.echo(json.dumps([asdict(line) for line in lines]))
        return
    header = (
        "cached", "queries", "vanilla GFLOP", "absorbed GFLOP", "vanilla MiB", "absorbed MiB", "vanilla ms",
        "absorbed ms", "faster",
    )  # fmt: skip
    click.echo(tables.table(header, map(_row, lines), right=",".join(header[:-1])))
    for length in cached:
        click.echo(f"{length} cached: vanilla computes less from {crossover(heads, length):.0f} queries at once on")
