"""From plans to files at the command line: what every job that writes GGUF files asks, shows and reports."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from gguf_mla import units
from gguf_mla.cli import network
from gguf_mla.cli.describe import noteworthy, plan_text, plans_json, result_json, result_text, timings
from gguf_mla.cli.failures import Interrupted
from gguf_mla.cli.printing import as_json, warn
from gguf_mla.codec import compiling, trial
from gguf_mla.codec.device import open_device
from gguf_mla.errors import InputError
from gguf_mla.files import checksums, platform
from gguf_mla.files.guard import check_apart, check_free, partial_path
from gguf_mla.files.readable import Elsewhere
from gguf_mla.plan.jobs import NO_IMPORTANCE
from gguf_mla.quoting import quoted
from gguf_mla.remote.traffic import TRAFFIC
from gguf_mla.sources import hub_cache
from gguf_mla.stream import execute as executor
from gguf_mla.stream import uses
from gguf_mla.stream.execute import Resumption, execute
from gguf_mla.stream.journal import finished, is_named_by, journal_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gguf_mla.cli.options import RunOptions
    from gguf_mla.files.readable import Place
    from gguf_mla.stream.execute import Result
    from gguf_mla.stream.run import Job


def launch(job: Job, options: RunOptions) -> None:
    """Check the outputs, then write them, or show what would be written."""
    network.limit(options)
    if options.dry_run:
        _show(job, options)
        return
    _check_names(job, options)
    for warning in dict.fromkeys(warning for plan, _ in job.outputs for warning in plan.warnings):
        warn(warning)
    _try_device(job, options)
    if options.verify_source:
        _verify_source(job, options)
    result = _run(job, options)
    for remark in job.remarks(result.remarks):
        warn(remark)
    if options.as_json:
        click.echo(as_json(result_json(job, result) | _network(job)))
    elif not options.quiet:
        click.echo(result_text(job, result))
        if network.is_remote(job):
            click.echo(network.result_text())
        if line := noteworthy(job, result):
            click.echo(line, err=True)
    if options.timings and not options.as_json:
        click.echo(timings(result))


def _paths(job: Job) -> list[Path]:
    return [planned.path for _, output in job.outputs for planned in output]


def _check_names(job: Job, options: RunOptions) -> None:
    """Know every name that the run may create, replace or remove, and refuse what may not be there."""
    paths = _paths(job)
    finals = [*paths, *(extra.path for extra in job.extras)]
    for directory in dict.fromkeys(path.parent for path in finals):
        if not directory.is_dir():
            remedy = "Create it or choose another place"
            raise InputError("the output's directory does not exist", file=directory, remedy=remedy)
    notes = [checksums.beside(path) for path in paths]
    unfinished = map(partial_path, (*finals, *notes))
    check_apart(finals, (*notes, *unfinished, journal_path(paths[0])), _here((*job.inputs, *job.protected)))
    named = {} if options.no_resume else finished(paths[0], len(job.outputs))
    for path in finals:
        check_free(path, overwrite=options.overwrite or is_named_by(named, path))
    for note in notes:
        if not is_named_by(named, note):
            checksums.check_note(note)


def _here(places: Iterable[Place]) -> list[Path]:
    """Return those of the files that lie on this machine."""
    return [path for path in places if isinstance(path, Path)]


def _verify_source(job: Job, options: RunOptions) -> None:
    """Compare the inputs with what the hub states: those on this machine now, others as they come."""
    for path in job.inputs:
        if isinstance(path, Elsewhere):
            path.vouch()
    if paths := _here(job.inputs):
        with _bar(sum(path.stat().st_size for path in paths), "verifying", options) as bar:
            hub_cache.verify(paths, bar.update, unstated=options.allow_unverified)


def _try_device(job: Job, options: RunOptions) -> None:
    """Have a device other than the CPU show that it gives the same bytes."""
    device, plans = open_device(options.device), [plan for plan, _ in job.outputs]
    if device.name == "cpu":
        return
    tried = trial.check(device, uses.uses_in(plans, job.sources, device, weighted=job.importance is not None))
    if not options.quiet:
        click.echo(trial.report(device, tried), err=True)


def _run(job: Job, options: RunOptions) -> Result:
    outputs, paths = [output for _, output in job.outputs], _paths(job)
    total = sum(plan.nbytes for plan, _ in job.outputs)
    try:
        with _bar(total, outputs[0][0].path.name, options) as bar, _heard_by(bar):
            return execute(
                outputs,
                job.sources,
                importance=job.importance or NO_IMPORTANCE,
                threads=options.threads,
                device=open_device(options.device),
                progress=network.updating(bar, job),
                resumption=Resumption(job.inputs, fresh=options.no_resume),
                overwrite=options.overwrite,
                extras=[*job.extras, *(checksums.note(path) for path in paths if options.checksums)],
                outdated=[checksums.beside(path) for path in paths],
            )
    except executor.RunInterrupted as stop:
        raise Interrupted(*_interrupted(stop.done, stop.total, options)) from None


@contextmanager
def _heard_by(bar: tqdm[Any]) -> Iterator[None]:
    """Print above the bar what a user waits for: kernels, and a server that asks to wait."""
    with compiling.heard_by(lambda told: _aside(bar, told)), TRAFFIC.heard_by(lambda told: _aside(bar, told)):
        yield


def _network(job: Job) -> dict[str, Any]:
    return {"network": network.result_json()} if network.is_remote(job) else {}


def _aside(bar: tqdm[Any], sentence: str) -> None:
    """Print a line above the bar, where there is one."""
    if not bar.disable:
        bar.write(sentence, file=sys.stderr)


def _bar(total: int, name: str, options: RunOptions) -> tqdm[Any]:
    # disable=None: only where standard error is a terminal
    hidden = options.quiet or None
    return tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc=quoted(name), disable=hidden)


def _interrupted(done: int, total: int, options: RunOptions) -> tuple[str, ...]:
    """Return what is done and how to go on; nothing where the command would start over."""
    if not done:
        return ()
    again = "Run the same command again, without --no-resume," if options.no_resume else "Run the same command again"
    return f"{units.size(done)} of {units.size(total)} are on the disk", f"{again} to go on from there"


def _show(job: Job, options: RunOptions) -> None:
    needs = network.needs(job)
    if options.as_json:
        click.echo(as_json(plans_json(job) | (network.needs_json(needs) if needs else {})))
        return
    for plan, output in job.outputs:
        click.echo(plan_text(plan, output, options.threads or platform.cores()))
    if needs:
        click.echo(network.needs_text(needs))
