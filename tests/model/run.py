"""Play interleavings of the commit and print what was found wrong.

    python -m tests.model.run [--count 30000] [--seed 0] [--jobs 2] [--only "same 12:swap:a.gguf.partial 30:kill"]

All single events at every step come first, in an order by chance, then several at once. Status 1 if anything is wrong.
"""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import time
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tests.model.commit import Interleaving, Model, parse
from tests.support.interleave import stepped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Found = dict[str, tuple[int, Interleaving]]  # each kind of fault: how often, and the first example


@click.command()
@click.option("--count", default=30_000, show_default=True, help="How many in all.")
@click.option("--seed", default=0, show_default=True)
@click.option("--jobs", default=2, show_default=True, help="Processes.")
@click.option("--only", multiple=True, help="Play just these.")
def run(count: int, seed: int, jobs: int, only: tuple[str, ...]) -> None:
    """Play them and print each kind of fault with the first interleaving that shows it."""
    begin = time.monotonic()
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        parts = pool.starmap(_part, [(number, jobs, count, seed, only) for number in range(jobs)])
    faults = {fault: example for _, found in parts for fault, (_, example) in found.items()}
    for fault, example in faults.items():
        times = sum(found[fault][0] for _, found in parts if fault in found)
        click.echo(f"{times:6} × {fault}\n         {example}")
    played = sum(played for played, _ in parts)
    click.echo(f"{played} interleavings in {time.monotonic() - begin:.0f} s, {len(faults)} kinds of faults")
    raise SystemExit(bool(faults))


def _part(number: int, jobs: int, count: int, seed: int, only: tuple[str, ...]) -> tuple[int, Found]:
    """Play every `jobs`-th interleaving."""
    with tempfile.TemporaryDirectory() as directory, stepped():
        model = Model(Path(directory))
        order = map(parse, only) if only else chain(shuffled(model, seed), model.several(seed))
        return play(model, islice(order, number, None, jobs), len(range(number, count, jobs)))


def shuffled(model: Model, seed: int) -> Iterator[Interleaving]:
    """All single events, in an order by chance."""
    singles = list(model.singles())
    random.Random(seed).shuffle(singles)
    return iter(singles)


def play(model: Model, order: Iterable[Interleaving], count: int) -> tuple[int, Found]:
    """Play `count` of them, not counting those that cannot happen; return how many, and what is wrong."""
    played, found = 0, Found()
    for interleaving in order:
        faults = model.faults(interleaving)
        played += faults is not None
        for fault in dict.fromkeys(faults or ()):
            times, example = found.get(fault, (0, interleaving))
            found[fault] = times + 1, example
        if played >= count:
            break
    return played, found


if __name__ == "__main__":
    run()
