"""A command on a Ray cluster: planned and finished here, done there."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_mla.cli import delivering, launch, network
from gguf_mla.cli.describe import memory
from gguf_mla.cli.main import Command, lacking
from gguf_mla.cli.progress import progress
from gguf_mla.cli.sharing import Shared, finished, in_place_of, made_again, ordered, worked_on
from gguf_mla.errors import GgufMlaError, InputError
from gguf_mla.stream import on_ray
from gguf_mla.stream.execute import RunInterrupted
from gguf_mla.stream.on_ray import POLL_SECONDS
from gguf_mla.stream.sharing import parts
from gguf_mla.stream.sharing import plan as plans
from gguf_mla.stream.sharing.ledger import PLAN, Ledger, discard
from gguf_mla.stream.sharing.plan import SharedPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gguf_mla.cli.options import RunOptions
    from gguf_mla.stream.execute import Result
    from gguf_mla.stream.run import Job
    from gguf_mla.stream.sharing.parts import PartLedger

LETTING_GO = 10.0  # seconds for workers to end
_held: dict[str, Shared] = {}  # the plan that this process has made again, by its digest


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to a cluster; InputError where Ray is not installed, MachineError where there is no cluster."""
    try:
        with on_ray.cluster(address):
            yield
    except ModuleNotFoundError as error:
        raise lacking(error, "--engine ray") from None


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
    shared = Shared(plan, job, options, Ledger(out, plan), context)
    launch.check_names(job, options, shared.ledger.marks())
    sending_to = None if options.upload is None else delivering.opened(shared)[1]
    launch.say_warnings(job)
    if options.verify_source:
        launch.verify_source(job, options)
    planning = time.monotonic() - begin
    if sending_to is not None:
        _sent(shared, sending_to)
        delivering.finished(shared, options, planning)
        return
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
    plan, ledger = shared.plan, shared.ledger
    ledger.open()
    left = [each for each in plan.jobs if ledger.record(each.number) is None]
    try:
        _have_done(shared, plan.jobs, left, share_of, str((ledger.folder / PLAN).absolute()), ledger.is_noted)
    except InputError:
        if ledger.is_stopped():  # by a weight: the input has to change first, and then nothing could be continued
            throw_away(lambda: discard(out_of(shared.job)))
        raise
    return plan.nbytes - sum(each.nbytes for each in left)


def _sent(shared: Shared, ledger: PartLedger) -> None:
    """Have the files built and sent that are not there; workers get the plan itself, as they share no folder."""
    ledger.open()
    there = ledger.sound()
    units = parts.wholes(shared.plan)
    left = [unit for unit in units if unit.number not in there]
    try:
        _have_done(shared, units, left, files_of, shared.plan.to_text(), ledger.is_noted)
    except InputError:
        with contextlib.suppress(GgufMlaError):
            ledger.remove()  # as above; what was sent stays, and is taken over if it is still right
        raise


def _have_done(
    shared: Shared,
    units: Sequence[Any],
    left: Sequence[Any],
    task: on_ray.Task,
    told: str,
    is_noted: Callable[[int], bool],
) -> None:
    """Have a cluster do what is left of all units, with a bar; Interrupted for Ctrl-C."""
    options, sizes = shared.options, {unit.number: unit.nbytes for unit in units}
    total, there = sum(sizes.values()), sum(sizes.values()) - sum(unit.nbytes for unit in left)
    title = launch.title([output for _, output in shared.job.outputs])
    try:
        with connected(options.address), progress(title, total, done=there, quiet=options.quiet) as bar:
            threads = on_ray.threads_of_a_worker(options.threads)
            needs = on_ray.Needs(threads, memory(threads), options.device)
            on_ray.run(
                task, told, left, needs, is_noted, lambda jobs: bar.update(sum(sizes[number] for number in jobs))
            )
    except KeyboardInterrupt:
        done = sum(size for number, size in sizes.items() if is_noted(number))
        raise launch.interrupted(RunInterrupted(done, total), options) from None


def throw_away(discard: Callable[[], object]) -> None:
    """Have something thrown away once the workers that were sent for it have let go of it: until then it is refused."""
    deadline = time.monotonic() + LETTING_GO
    while True:
        try:
            discard()
        except InputError:
            if time.monotonic() > deadline:
                return
            time.sleep(POLL_SECONDS)
        else:
            return


def out_of(job: Job) -> Path:
    """Return the first output, beside which the notes lie."""
    return job.outputs[0][1][0].path


def share_of(plan: str, jobs: Sequence[int], threads: int, device: str) -> None:
    """Do some jobs of a plan: what a worker is sent for. The plan is made again once in a process."""
    found = plans.read(Path(plan))
    with contextlib.chdir(found.order.directory):
        shared = _held.get(found.digest) or _made(found, threads, device)
        worked_on(shared, [found.jobs[number] for number in jobs], shared.options)


def files_of(plan: str, numbers: Sequence[int], threads: int, device: str) -> None:
    """Build some files of a plan and send them: what a worker is sent for where no folder is shared."""
    found = plans.parse(plan.encode())
    with in_place_of(found):
        shared = _held.get(found.digest) or _made(found, threads, device)
        units = parts.wholes(found)
        delivering.worked_on(shared, [units[number] for number in numbers], shared.options)


def _made(found: SharedPlan, threads: int, device: str) -> Shared:
    shared = made_again(found)
    shared = replace(shared, options=replace(shared.options, threads=threads, device=device, quiet=True))
    network.limit(shared.options)
    launch.prepare(shared.job, shared.options)
    _held.clear()
    _held[found.digest] = shared
    return shared
