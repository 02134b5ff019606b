"""From plans to files at the command line: what every job that writes GGUF files asks, shows and reports."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from gguf_mla import units
from gguf_mla.cli.describe import plan_text, plans_json, result_json, result_text, timings
from gguf_mla.cli.failures import Interrupted
from gguf_mla.cli.printing import as_json, warn
from gguf_mla.codec import trial
from gguf_mla.codec.device import open_device
from gguf_mla.errors import InputError
from gguf_mla.files import checksums, platform
from gguf_mla.plan.jobs import NO_IMPORTANCE
from gguf_mla.quoting import quoted
from gguf_mla.sources import hub_cache
from gguf_mla.stream import execute as executor
from gguf_mla.stream import uses
from gguf_mla.stream.execute import Resumption, execute
from gguf_mla.stream.journal import was_finished

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from gguf_mla.cli.options import RunOptions
    from gguf_mla.stream.execute import Result
    from gguf_mla.stream.run import Job


def launch(job: Job, options: RunOptions) -> None:
    """Check the outputs, then write them, or show what would be written."""
    paths = [planned.path for _, output in job.outputs for planned in output]
    if options.dry_run:
        _show(job, options)
        return
    replacing = options.overwrite or _is_half_named(paths[0], len(job.outputs), options)
    _check_paths(paths, (*job.inputs, *job.protected), overwrite=replacing)
    for warning in dict.fromkeys(warning for plan, _ in job.outputs for warning in plan.warnings):
        warn(warning)
    _try_device(job, options)
    if options.verify_source:
        _verify_source(job, options)
    result = _run(job, options)
    for remark in job.remarks(result.remarks):
        warn(remark)
    if options.as_json:
        click.echo(as_json(result_json(job, result)))
    elif not options.quiet:
        click.echo(result_text(job, result))
    if options.timings and not options.as_json:
        click.echo(timings(result))


def _is_half_named(first: Path, outputs: int, options: RunOptions) -> bool:
    """Whether the unfinished run that will be continued has given some files their names already."""
    return not options.no_resume and was_finished(first, outputs)


def _check_paths(paths: Sequence[Path], inputs: Iterable[Path], *, overwrite: bool) -> None:
    read, counts = {path.resolve() for path in inputs}, Counter(paths)
    for path in paths:
        if not path.parent.is_dir():
            remedy = "Create it or choose another place"
            raise InputError("the output's directory does not exist", file=path.parent, remedy=remedy)
        if path.resolve() in read:
            raise InputError("the output is one of the inputs", file=path, remedy="Choose another name")
        if counts[path] > 1:
            raise InputError("two outputs have the same name", file=path, remedy="Put {type} into the name")
        if path.is_dir():
            raise InputError("the output is a directory", file=path, remedy="Choose another name")
        if path.exists() and not overwrite:
            remedy = "Choose another name or give --overwrite"
            raise InputError("the output exists already", file=path, remedy=remedy)


def _verify_source(job: Job, options: RunOptions) -> None:
    with _bar(sum(path.stat().st_size for path in job.inputs), "verifying", options) as bar:
        hub_cache.verify(job.inputs, bar.update)


def _try_device(job: Job, options: RunOptions) -> None:
    """Have a device other than the CPU show that it gives the same bytes."""
    device, plans = open_device(options.device), [plan for plan, _ in job.outputs]
    if device.name == "cpu":
        return
    tried = trial.check(device, uses.uses_in(plans, job.sources, device, weighted=job.importance is not None))
    if not options.quiet:
        click.echo(trial.report(device, tried), err=True)


def _run(job: Job, options: RunOptions) -> Result:
    outputs = [output for _, output in job.outputs]
    total = sum(plan.nbytes for plan, _ in job.outputs)
    try:
        with _bar(total, outputs[0][0].path.name, options) as bar:
            return execute(
                outputs,
                job.sources,
                importance=job.importance or NO_IMPORTANCE,
                threads=options.threads,
                device=open_device(options.device),
                progress=bar.update,
                resumption=Resumption(job.inputs, fresh=options.no_resume),
                finish=checksums.write if options.checksums else checksums.remove,
            )
    except executor.Interrupted as stop:
        raise Interrupted(*_interrupted(stop.done, stop.total, options)) from None


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
    if options.as_json:
        click.echo(as_json(plans_json(job)))
        return
    for plan, output in job.outputs:
        click.echo(plan_text(plan, output, options.threads or platform.cores()))
