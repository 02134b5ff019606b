"""How a plan scales, by its own costs: how even shares are, and what the storage that all workers share has to give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_mla.stream.sharing.plan import shared_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_mla.stream.sharing.cut import SharedJob
    from gguf_mla.stream.sharing.parts import Whole

    Units = Sequence[SharedJob] | Sequence[Whole]

EVEN = 1.1  # of the slowest share to the mean, where shares count as even


@dataclass(frozen=True)
class Scaled:
    """A plan with so many workers.

    workers     how many
    jobs        of each, on average
    balance     the slowest share by the mean
    seconds     until the slowest has ended, with so many cores each
    reads       bytes that the worker reads which reads most
    writes      bytes that the worker writes which writes most
    read_rate   bytes that all workers read in a second
    write_rate  bytes that all workers write in a second
    """

    workers: int
    jobs: float
    balance: float
    seconds: float
    reads: int
    writes: int
    read_rate: float
    write_rate: float


def scaled(units: Units, workers: int, cores: int) -> Scaled:
    """Return what a plan's jobs, or its files, come to with workers of so many cores, each with its rank's share."""
    shares = shared_out(units, workers)
    loads = [sum(job.seconds for job in share) for share in shares]
    seconds = max(loads) / cores
    return Scaled(
        workers,
        len(units) / workers,
        max(loads) * workers / sum(loads) if sum(loads) else 1.0,
        seconds,
        max(sum(job.reads for job in share) for share in shares),
        max(sum(job.nbytes for job in share) for share in shares),
        sum(job.reads for job in units) / seconds if seconds else 0.0,
        sum(job.nbytes for job in units) / seconds if seconds else 0.0,
    )


def most(units: Units) -> int:
    """Return up to how many workers, doubled again and again, the shares are even."""
    workers = 1
    while 2 * workers <= len(units) and scaled(units, 2 * workers, 1).balance <= EVEN:
        workers *= 2
    return workers
