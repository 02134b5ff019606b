"""How a plan scales, by its own costs: how even shares are, and what the storage that all workers share has to give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gguf_mla.stream.sharing.plan import SharedPlan

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


def scaled(plan: SharedPlan, workers: int, cores: int) -> Scaled:
    """Return what a plan comes to with workers of so many cores, each with its rank's share."""
    shares = plan.shares(workers)
    loads = [sum(job.seconds for job in share) for share in shares]
    seconds = max(loads) / cores
    return Scaled(
        workers,
        len(plan.jobs) / workers,
        max(loads) * workers / sum(loads) if sum(loads) else 1.0,
        seconds,
        max(sum(job.reads for job in share) for share in shares),
        max(sum(job.nbytes for job in share) for share in shares),
        sum(job.reads for job in plan.jobs) / seconds if seconds else 0.0,
        plan.nbytes / seconds if seconds else 0.0,
    )


def most(plan: SharedPlan) -> int:
    """Return up to how many workers, doubled again and again, the shares of a plan are even."""
    workers = 1
    while 2 * workers <= len(plan.jobs) and scaled(plan, 2 * workers, 1).balance <= EVEN:
        workers *= 2
    return workers
