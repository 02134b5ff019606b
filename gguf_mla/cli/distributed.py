"""A command on a Ray cluster: planned and finished here, done there."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_mla.cli import launch, network
from gguf_mla.cli.describe import memory
from gguf_mla.cli.main import Command, lacking
from gguf_mla.cli.progress import progress
from gguf_mla.cli.sharing import Shared, finished, made_again, ordered, worked_on
from gguf_mla.errors import InputError
from gguf_mla.stream import on_ray
from gguf_mla.stream.execute import RunInterrupted
from gguf_mla.stream.on_ray import POLL_SECONDS
from gguf_mla.stream.sharing import plan as plans
from gguf_mla.stream.sharing.ledger import PLAN, Ledger, discard
from gguf_mla.stream.sharing.plan import SharedPlan

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gguf_mla.cli.options import RunOptions
    from gguf_mla.stream.execute import Result
    from gguf_mla.stream.run import Job

LETTING_GO = 10.0  # seconds for workers to end
_held: dict[str, Shared] = {}  # the plan that this process has made again, by its digest


def launch_on_ray(job: Job, options: RunOptions) -> None:
    """Have a job done by a cluster; what an earlier run of the same command has noted is not done again."""
    begin = time.monotonic()
    context = click.get_current_context()
    if not isinstance(context.command, Command):
        raise InputError("only a command can be done on Ray", found=context.command.name)
    out = out_of(job)
    if options.no_resume:
        discard(out)
    plan = SharedPlan.of(ordered(context.command, context.params), job)
    shared = Shared(plan, job, options, Ledger(out, plan))
    launch.check_names(job, options, shared.ledger.marks())
    launch.say_warnings(job)
    if options.verify_source:
        launch.verify_source(job, options)
    planning = time.monotonic() - begin
    with launch.created(job.directories):
        there = _done(shared)
    finished(shared, options, planning, lambda result: _whole(result, there, begin + planning))


def _whole(result: Result, there: int, begin: float) -> Result:
    """Return the result of finishing as that of all the work: `there` was noted before it began."""
    seconds = time.monotonic() - begin
    return replace(
        result, taken_over=there, seconds=seconds, streaming_seconds=result.streaming_seconds + seconds - result.seconds
    )


def _done(shared: Shared) -> int:
    """Have done what is left, and return how many bytes were noted already."""
    plan, ledger, options = shared.plan, shared.ledger, shared.options
    ledger.open()
    left = [each for each in plan.jobs if ledger.record(each.number) is None]
    there = plan.nbytes - sum(each.nbytes for each in left)
    title = launch.title([output for _, output in shared.job.outputs])
    try:
        with on_ray.cluster(options.address), progress(title, plan.nbytes, done=there, quiet=options.quiet) as bar:
            threads = on_ray.threads_of_a_worker(options.threads)
            needs = on_ray.Needs(threads, memory(threads), options.device)
            place = str((ledger.folder / PLAN).absolute())
            on_ray.run(share_of, place, left, needs, ledger.is_noted, lambda jobs: bar.update(_bytes(plan, jobs)))
    except ModuleNotFoundError as error:
        raise lacking(error, "--engine ray") from None
    except InputError:
        if ledger.is_stopped():  # by a weight: the input has to change first, and then nothing could be continued
            _throw_away(out_of(shared.job))
        raise
    except KeyboardInterrupt:
        noted = [each.number for each in plan.jobs if ledger.is_noted(each.number)]
        raise launch.interrupted(RunInterrupted(_bytes(plan, noted), plan.nbytes), options) from None
    return there


def _throw_away(out: Path) -> None:
    """Throw away what was written, once the workers that were sent away have let go of it."""
    deadline = time.monotonic() + LETTING_GO
    while True:
        try:
            discard(out)
        except InputError:
            if time.monotonic() > deadline:
                return
            time.sleep(POLL_SECONDS)
        else:
            return


def out_of(job: Job) -> Path:
    """Return the first output, beside which the notes lie."""
    return job.outputs[0][1][0].path


def _bytes(plan: SharedPlan, jobs: Iterable[int]) -> int:
    return sum(plan.jobs[number].nbytes for number in jobs)


def share_of(plan: str, jobs: Sequence[int], threads: int, device: str) -> None:
    """Do some jobs of a plan: what a worker is sent for. The plan is made again once in a process."""
    found = plans.read(Path(plan))
    with contextlib.chdir(found.order.directory):
        shared = _held.get(found.digest) or _made(found, threads, device)
        worked_on(shared, [found.jobs[number] for number in jobs], shared.options)


def _made(found: SharedPlan, threads: int, device: str) -> Shared:
    shared = made_again(found)
    shared = replace(shared, options=replace(shared.options, threads=threads, device=device, quiet=True))
    network.limit(shared.options)
    launch.prepare(shared.job, shared.options)
    _held.clear()
    _held[found.digest] = shared
    return shared
