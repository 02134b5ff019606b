"""From plans to files at the command line: what every job that writes GGUF files asks, shows and reports."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from gguf_mla import units
from gguf_mla.cli import handover, network, sending, speech
from gguf_mla.cli.ahead import compile_ahead
from gguf_mla.cli.describe import job_text, noteworthy, plan_json, result_json, result_text, timings
from gguf_mla.cli.document import answer
from gguf_mla.cli.failures import Interrupted
from gguf_mla.cli.options import RAY
from gguf_mla.cli.printing import log, warn
from gguf_mla.cli.progress import progress
from gguf_mla.codec import compiling, trial
from gguf_mla.codec.device import open_device
from gguf_mla.container.splits import model_name
from gguf_mla.errors import GgufMlaError, InputError
from gguf_mla.files import checksums, platform
from gguf_mla.files.directories import make_directory
from gguf_mla.files.guard import check_apart, check_free, mark_of, partial_path
from gguf_mla.files.readable import Elsewhere, here
from gguf_mla.plan.jobs import NO_IMPORTANCE
from gguf_mla.remote.traffic import TRAFFIC
from gguf_mla.sources import hub_cache
from gguf_mla.stream import needs, uses
from gguf_mla.stream.execute import Resumption, RunInterrupted, execute
from gguf_mla.stream.journal import finished, is_named_by, journal_path
from gguf_mla.stream.rehearse import rehearse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from gguf_mla.cli.options import RunOptions
    from gguf_mla.cli.progress import Progress
    from gguf_mla.files.guard import Mark
    from gguf_mla.plan.outputs import Output
    from gguf_mla.remote.destination import Destination
    from gguf_mla.stream.execute import Result
    from gguf_mla.stream.run import Job


def launch(job: Job, options: RunOptions) -> None:
    """Check the outputs, then write them, or show what would be written and whether it would be refused.

    Where a command was called to be planned only, its job is handed over instead.
    """
    sending.check(options)
    if handover.taken(job, options):
        return
    network.limit(options)
    if options.dry_run:
        show(job, options)
        return
    if options.engine == RAY:
        from gguf_mla.cli import distributed  # noqa: PLC0415 - it launches what others plan

        distributed.launch_on_ray(job, options)
        return
    planned = time.monotonic()
    check_names(job, options)
    sink = sending.sink(job, options)
    say_warnings(job)
    prepare(job, options)
    if options.verify_source:
        verify_source(job, options)
    result = _run(job, options, sink)
    report(job, result, options, planned - speech.current().begin, sink)


def say_warnings(job: Job) -> None:
    """Print the warnings of all plans, each once."""
    for warning in dict.fromkeys(warning for plan, _ in job.outputs for warning in plan.warnings):
        warn(warning)


def prepare(job: Job, options: RunOptions) -> None:
    """Have the kernels compiled that a run needs, and its device tried."""
    plans, importance = [plan for plan, _ in job.outputs], job.importance or NO_IMPORTANCE
    compile_ahead(needs.of_plans(plans, job.sources, importance), options)
    _try_device(job, options)


def report(job: Job, result: Result, options: RunOptions, planning: float, sink: Destination | None = None) -> None:
    """Say what was written; `planning` is how many seconds were spent before, measuring included.

    Inputs that were to go are deleted: everything that was made of them is on the disk, or where `sink` has sent it.
    """
    _remove(job.consumed)
    for remark in job.remarks(result.remarks):
        warn(remark)
    if options.as_json:
        answer(**result_json(job, result, planning, sink, checked=_are_noted(options)))
        return
    if not options.quiet:
        click.echo(result_text(job, result, planning + result.seconds, sink))
        for line in noteworthy(job, result):
            log("noteworthy", line)
    if options.timings:
        click.echo(timings(result, planning))


def show(job: Job, options: RunOptions) -> None:
    """Show the plan, and end as the run would: what it would be refused for is raised after the plan is shown."""
    refused: GgufMlaError | None = None
    lacking: list[str] = []
    sink: Destination | None = None
    try:
        check_names(job, options)
        sink = sending.sink(job, options)
        lacking = rehearse([output for _, output in job.outputs], **circumstances(job, options, sink))
    except GgufMlaError as error:
        refused = error
    threads = options.threads or platform.cores()
    if options.as_json:
        answer(**plan_json(job, threads, lacking, sink), errors=[] if refused is None else [refused])
    else:
        click.echo(job_text(job, threads, lacking, sink))
    if refused is not None:
        raise refused


def _are_noted(options: RunOptions) -> bool:
    """Whether checksums are written beside the outputs, which have to stay for that."""
    return options.checksums and (options.upload is None or options.keep)


def circumstances(job: Job, options: RunOptions, sink: Destination | None = None) -> dict[str, Any]:
    """Return what a run depends on beside its outputs and sources, as `execute` and `rehearse` take it."""
    paths = _paths(job)
    return {
        "importance": job.importance or NO_IMPORTANCE,
        "resumption": Resumption(job.inputs, fresh=options.no_resume),
        "overwrite": options.overwrite,
        "extras": [*job.extras, *(checksums.note(path) for path in paths if _are_noted(options))],
        "outdated": [checksums.beside(path) for path in paths],
        "sink": sink,
    }


def _paths(job: Job) -> list[Path]:
    return [planned.path for _, output in job.outputs for planned in output]


def check_names(job: Job, options: RunOptions, mine: Mapping[str, Mark] | None = None) -> None:
    """Know every name that the run may create, replace or remove, and refuse what may not be there.

    `mine` are the marks of files that shared work has finished, by path: they are ours.
    """
    paths = _paths(job)
    finals = [*paths, *(extra.path for extra in job.extras)]
    for directory in dict.fromkeys(path.parent for path in finals):
        if not directory.is_dir() and directory not in job.directories:
            remedy = "Create it or choose another place"
            raise InputError("the output's directory does not exist", file=directory, remedy=remedy)
    notes = [checksums.beside(path) for path in paths]
    unfinished = map(partial_path, (*finals, *notes))
    check_apart(finals, (*notes, *unfinished, journal_path(paths[0])), here((*job.inputs, *job.protected)))
    named = {} if options.no_resume else finished(paths[0], len(job.outputs))
    for path in finals:
        ours = is_named_by(named, path) or (mine or {}).get(str(path), []) == mark_of(path)
        check_free(path, overwrite=options.overwrite or ours)
    for note in notes:
        if not is_named_by(named, note):
            checksums.check_note(note)


def verify_source(job: Job, options: RunOptions) -> None:
    """Compare the inputs with what the hub states: those on this machine now, others as they come."""
    for path in job.inputs:
        if isinstance(path, Elsewhere):
            path.vouch()
    if paths := here(job.inputs):
        nbytes = sum(path.stat().st_size for path in paths)
        with progress("verifying", nbytes, quiet=options.quiet) as bar:
            hub_cache.verify(paths, bar.update, unstated=options.allow_unverified)


def _try_device(job: Job, options: RunOptions) -> None:
    """Have a device other than the CPU show that it gives the same bytes."""
    device, plans = open_device(options.device), [plan for plan, _ in job.outputs]
    if device.name == "cpu":
        return
    tried = trial.check(device, uses.uses_in(plans, job.sources, device, weighted=job.importance is not None))
    if not options.quiet:
        log("device", trial.report(device, tried))


def _run(job: Job, options: RunOptions, sink: Destination | None) -> Result:
    outputs = [output for _, output in job.outputs]
    total = sum(plan.nbytes for plan, _ in job.outputs)
    try:
        with (
            created(job.directories),
            progress(title(outputs), total, quiet=options.quiet, note=network.note(job, sink)) as bar,
            heard_by(bar),
        ):
            return execute(
                outputs,
                job.sources,
                threads=options.threads,
                device=open_device(options.device),
                progress=bar.update,
                **circumstances(job, options, sink),
            )
    except RunInterrupted as stop:
        raise interrupted(stop, options) from None


@contextmanager
def heard_by(bar: Progress) -> Iterator[None]:
    """Print above the bar what a user waits for: kernels, and a server that asks to wait."""
    with compiling.heard_by(bar.aside), TRAFFIC.heard_by(bar.aside):
        yield


@contextmanager
def created(directories: Sequence[Path]) -> Iterator[None]:
    """Create directories of outputs; one that stays empty because the run fails goes again."""
    missing = [directory for directory in directories if not directory.is_dir()]
    for directory in missing:
        make_directory(directory)
    try:
        yield
    except BaseException:
        for directory in missing:
            with suppress(OSError):  # not empty: a rerun goes on from there
                directory.rmdir()
        raise


def _remove(paths: Sequence[Path]) -> None:
    """Delete inputs, now that everything that was made of them is on the disk, and the notes with their checksums."""
    for path in paths:
        platform.remove(path)
        checksums.remove(checksums.beside(path))


def title(outputs: Sequence[Output]) -> str:
    """Return what a run is called: its output, or how many there are."""
    first = outputs[0][0].path
    if len(outputs) > 1:
        return f"{len(outputs)} outputs"
    return first.name if len(outputs[0]) == 1 else f"{model_name(first)}, {len(outputs[0])} parts"


def interrupted(stop: RunInterrupted, options: RunOptions) -> Interrupted:
    """Return what to end with: what is done and how to go on, or that the command would start over."""
    if not stop.done:
        return Interrupted()
    again = "Run the same command again, without --no-resume," if options.no_resume else "Run the same command again"
    done = f"{units.size(stop.done)} of {units.size(stop.total)} are on the disk"
    return Interrupted(done, f"{again} to go on from there")
