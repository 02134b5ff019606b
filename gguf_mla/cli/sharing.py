"""What `gguf-mla plan`, `work` and `finish` do: a command is planned here, done in many places, and finished in one."""

from __future__ import annotations

import contextlib
import os
import re
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_mla import units
from gguf_mla.cli import delivering, handover, launch, network, sending
from gguf_mla.cli.document import answer
from gguf_mla.cli.handover import Handover
from gguf_mla.cli.main import Command, main
from gguf_mla.cli.outcome import outputs
from gguf_mla.cli.progress import progress
from gguf_mla.cli.table import table
from gguf_mla.codec.device import open_device
from gguf_mla.codec.on_cpu import CPU
from gguf_mla.errors import InputError
from gguf_mla.files.directories import make_directory
from gguf_mla.files.output import OutputFile
from gguf_mla.files.readable import Elsewhere
from gguf_mla.stream.execute import RunInterrupted
from gguf_mla.stream.sharing import finish as finishing
from gguf_mla.stream.sharing import plan as plans
from gguf_mla.stream.sharing import scale
from gguf_mla.stream.sharing.ledger import Ledger, discard
from gguf_mla.stream.sharing.parts import wholes
from gguf_mla.stream.sharing.plan import Order, SharedPlan
from gguf_mla.stream.sharing.work import work as do

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gguf_mla.cli.options import RunOptions
    from gguf_mla.stream.execute import Result
    from gguf_mla.stream.run import Job
    from gguf_mla.stream.sharing.cut import SharedJob
    from gguf_mla.stream.sharing.work import Worked


MOST_WORKERS = 1 << 16


@dataclass(frozen=True)
class Shared:
    """A plan with the job that it is about, made again on this machine, the notes about it, and the command."""

    plan: SharedPlan
    job: Job
    options: RunOptions
    ledger: Ledger
    context: click.Context


def plan(command: Command, values: Mapping[str, Any], path: Path, job_size: str | None) -> None:
    """Write the plan of a command, or show it; InputError for what the command would be refused for."""
    order, job, options = _planned(command, values)
    if options.dry_run:
        launch.show(job, options)
        return
    launch.check_names(job, options)
    sending.sink(job, options)
    launch.say_warnings(job)
    if options.verify_source:
        if any(isinstance(path, Elsewhere) for path in job.inputs):
            raise InputError("--verify-source needs one process that reads the files of the hub", remedy="Leave it out")
        launch.verify_source(job, options)
    out = job.outputs[0][1][0].path
    if options.no_resume:
        discard(out)
    made = SharedPlan.of(order, job, None if job_size is None else units.parse_size(job_size))
    Ledger(out, made).is_there()
    text = made.to_text().encode()
    with OutputFile(path, len(text), overwrite=options.overwrite) as file:
        file.put(text)
    if values.get("as_json"):
        answer(inputs=job.inputs, outputs=outputs(job, planned=False, checked=False), plan=summary(made, path))
    elif not options.quiet:
        click.echo(_said(made, path))


def ordered(command: Command, values: Mapping[str, Any]) -> Order:
    """Return what the command that is running was told, and what it has measured, as data."""
    options = handover.options_of(command, values)
    return Order(str(command.name), options, str(Path.cwd()), handover.errors_measured())


def _planned(command: Command, values: Mapping[str, Any]) -> tuple[Order, Job, RunOptions]:
    """Have a command plan, and return its job; InputError for one that would first have to make something else."""
    if values.get("calibrate"):
        raise InputError(
            "--calibrate makes an importance matrix first", remedy="Make it with gguf-mla imatrix, and give --imatrix"
        )
    receiver = Handover()
    with handover.received(click.get_current_context(), receiver):
        command.call(**values)
    job, options = _taken(receiver)
    return ordered(command, values), job, options


def _taken(receiver: Handover) -> tuple[Job, RunOptions]:
    if receiver.taken is None:
        raise InputError("this command writes no model", remedy="Plan convert, quantize or upgrade")
    return receiver.taken


def made_again(found: SharedPlan) -> Shared:
    """Make a plan again, in its directory; InputError where this machine would make another one."""
    root = click.Context(main, info_name="gguf-mla")
    command = main.get_command(root, found.order.command)
    if not isinstance(command, Command):
        raise InputError("the plan names a command that there is not", found=found.order.command, remedy=plans.AGAIN)
    receiver = Handover(found.order.measured)
    told = dict(found.order.options)
    device = told.pop("device", CPU.name)  # who finishes, or is told to compute elsewhere, need not have it
    words = handover.words_of(command, told)
    with root, handover.received(root, receiver), command.make_context(command.name, words, parent=root) as context:
        command.invoke(context)
    job, options = _taken(receiver)
    options = replace(options, device=device)
    found.check(SharedPlan.of(found.order, job, found.largest))
    return Shared(found, job, options, Ledger(job.outputs[0][1][0].path, found), context)


@contextmanager
def opened(path: Path) -> Iterator[Shared]:
    """Read a plan, and make it again in the directory where it was made; InputError where that is not there."""
    found = plans.read(path)
    with in_place_of(found):
        yield made_again(found)


@contextmanager
def in_place_of(found: SharedPlan) -> Iterator[None]:
    """Be in the directory where a plan was made; InputError where it is not there.

    Where the files are sent elsewhere, no directory has to be the same on all machines: then it may be missing.
    """
    place = Path(found.order.directory)
    if not place.is_dir():
        if found.order.options.get("upload"):
            yield
            return
        raise InputError(
            "the directory that the plan was made in is not there",
            file=place,
            remedy="Inputs, outputs and plan have to lie in a folder that all machines see under the same name",
        )
    with contextlib.chdir(place):
        yield


def show(plan: Path, workers: str, cores: int, as_json: bool) -> None:
    """Show how a plan's jobs are shared out."""
    found = plans.read(plan)
    counts = numbers(workers, range(1, MOST_WORKERS + 1), "numbers of workers")
    units = wholes(found) if found.order.options.get("upload") else found.jobs
    rows = [scale.scaled(units, count, cores) for count in counts]
    if as_json:
        answer(plan=summary(found, plan), workers=[asdict(row) for row in rows])
        return
    click.echo(_said(found, plan).partition("\n")[0])
    click.echo()
    head = ("workers", "jobs each", "slowest/mean", "time", "reads each", "writes each", "read rate", "write rate")
    click.echo(table(head, [_row(row) for row in rows], right=",".join(head)))
    click.echo(f"\nshares are even (slowest/mean at most {scale.EVEN}) up to {scale.most(units)} workers")


def _row(row: scale.Scaled) -> tuple[str, ...]:
    return (
        str(row.workers),
        f"{row.jobs:.1f}",
        f"{row.balance:.3f}",
        units.span(row.seconds),
        units.size(row.reads),
        units.size(row.writes),
        f"{units.size(row.read_rate)}/s",
        f"{units.size(row.write_rate)}/s",
    )


def work(
    plan: Path,
    rank: int | None,
    of: int | None,
    jobs: str | None,
    threads: int | None,
    device: str | None,
    bandwidth: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Do a share of a plan."""
    begin = time.monotonic()
    with opened(plan) as shared:
        planned = shared.options
        options = replace(
            planned,
            threads=threads or planned.threads,
            device=device or planned.device,
            bandwidth=bandwidth or planned.bandwidth,
            quiet=quiet,
            as_json=as_json,
        )
        units, do_some = units_of(shared)
        mine = chosen(units, rank, of, jobs)
        planning = time.monotonic() - begin
        network.limit(options)
        launch.prepare(shared.job, options)
        worked = do_some(shared, mine, options)
        if as_json:
            stages = {"planning": planning, "working": worked.seconds}
            answer(inputs=shared.job.inputs, stages=stages, share=_work_json(worked))
        elif not quiet:
            click.echo(_work_text(worked, len(units)))


def units_of(shared: Shared) -> tuple[Sequence[Any], Callable[[Shared, Sequence[Any], RunOptions], Worked]]:
    """Return what workers can do of a plan, and how: its jobs in shared files, or whole files that are sent."""
    if shared.options.upload is None:
        return shared.plan.jobs, worked_on
    return wholes(shared.plan), delivering.worked_on


def worked_on(shared: Shared, mine: Sequence[SharedJob], options: RunOptions) -> Worked:
    """Do some jobs, with a bar; Interrupted for Ctrl-C."""
    job, ledger = shared.job, shared.ledger
    for directory in job.directories:
        make_directory(directory)
    ledger.open()
    title = f"{launch.title([output for _, output in job.outputs])}, {len(mine)} jobs"
    total = sum(each.nbytes for each in mine)
    try:
        with progress(title, total, quiet=options.quiet, note=network.note(job)) as bar, launch.heard_by(bar):
            return do(
                job,
                mine,
                ledger,
                threads=options.threads,
                device=open_device(options.device),
                progress=bar.update,
            )
    except RunInterrupted as stop:
        raise launch.interrupted(stop, options) from None


def finish(plan: Path, threads: int | None, quiet: bool, as_json: bool) -> None:
    """Complete and name the files of a plan."""
    begin = time.monotonic()
    with opened(plan) as shared:
        options = replace(shared.options, threads=threads, quiet=quiet, as_json=as_json)
        if options.upload is not None:
            delivering.finished(shared, options, time.monotonic() - begin)
            return
        launch.check_names(shared.job, options, shared.ledger.marks())
        planning = time.monotonic() - begin
        finished(shared, options, planning)


def finished(
    shared: Shared,
    options: RunOptions,
    planning: float,
    whole: Callable[[Result], Result] = lambda result: result,
) -> None:
    """Complete and name the files of a plan, with a bar, and say what was written.

    `whole` makes the result of all the work from that of finishing.
    """
    job = shared.job
    if not shared.ledger.marks() and not shared.ledger.is_there():
        raise InputError("no work was done by this plan", file=shared.ledger.folder, remedy="Run gguf-mla work")
    titled = f"checking {launch.title([output for _, output in job.outputs])}"
    try:
        with progress(titled, shared.plan.nbytes, quiet=options.quiet) as bar, launch.heard_by(bar):
            circumstances = launch.circumstances(job, options)
            result = finishing.finish(
                job, shared.plan, shared.ledger, threads=options.threads, progress=bar.update, **circumstances
            )
    except RunInterrupted as stop:
        raise launch.interrupted(stop, options) from None
    launch.report(job, whole(result), options, planning)


def chosen(units: Sequence[Any], rank: int | None, of: int | None, jobs: str | None) -> list[Any]:
    """Return the units that options ask for, all without any; InputError for what cannot be."""
    if jobs is not None:
        if rank is not None or of is not None:
            raise InputError("--jobs and --rank exclude each other", remedy="Give one of the two")
        return [units[number] for number in numbers(jobs, range(len(units)), "jobs of the plan")]
    if (rank is None) != (of is None):
        raise InputError("--rank and --of belong together", remedy="Give both: --rank 0 --of 4 is the first of four")
    if rank is None or of is None:
        return list(units)
    if rank >= of:
        raise InputError("there is no such rank", expected=f"0 to {of - 1}", found=rank)
    return plans.shared_out(units, of)[rank]


def numbers(text: str, allowed: range, what: str) -> list[int]:
    """Return the numbers that a text such as 3,7-9 names, ascending; InputError unless all are allowed."""
    found: set[int] = set()
    for item in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", item.strip(), re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not allowed.start <= first <= last < allowed.stop:
            expected = f"numbers such as 3,7-9 from {allowed.start} to {allowed.stop - 1}"
            raise InputError(f"these are not {what}", expected=expected, found=item)
        found |= set(range(first, last + 1))
    return sorted(found)


def summary(plan: SharedPlan, path: Path) -> dict[str, Any]:
    """Return a plan in numbers, as JSON-ready data."""
    return {
        "path": str(path),
        "digest": plan.digest,
        "jobs": len(plan.jobs),
        "bytes": plan.nbytes,
        "reads": sum(job.reads for job in plan.jobs),
        "seconds": round(sum(job.seconds for job in plan.jobs), 3),
    }


def _said(plan: SharedPlan, path: Path) -> str:
    found = summary(plan, path)
    what = f"{found['jobs']} jobs, {units.size(found['bytes'])} to write, about {units.size(found['reads'])} to read"
    name = os.fspath(path)
    return (
        f"{path}: {what}, about {units.span(found['seconds'])} on one core\n"
        f"to go on: gguf-mla work {name} --rank I --of N on N machines, then gguf-mla finish {name}"
    )


def _work_json(worked: Worked) -> dict[str, Any]:
    return {
        "jobs": list(worked.jobs),
        "bytes": worked.nbytes,
        "taken_over": worked.taken_over,
        "threads": worked.threads,
        "work": {stage: round(seconds, 3) for stage, seconds in worked.stages.items()},
    }


def _work_text(worked: Worked, of: int) -> str:
    there = f", {units.size(worked.taken_over)} were there already" if worked.taken_over else ""
    rate = units.size(worked.nbytes / worked.seconds) if worked.seconds else "0 B"
    jobs = f"{len(worked.jobs)} of {of} jobs"
    return f"{jobs}: {units.size(worked.nbytes)} in {worked.seconds:.1f} s ({rate}/s){there}"
