"""From plans to files at the command line: what every job that writes GGUF files asks, shows and reports."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_mla.cli.table import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tqdm import tqdm

    from gguf_mla.codec.device import Device
    from gguf_mla.importance.matrix import Imatrix
    from gguf_mla.plan.budgeted import Measure
    from gguf_mla.plan.jobs import Importance, Plan, Untyped
    from gguf_mla.plan.outputs import Output
    from gguf_mla.sources.tensor import SourceTensor
    from gguf_mla.stream.execute import Result

BASE_MEMORY = 200 << 20  # Python, numpy, numba with its kernels, a vocabulary
CHUNK_MEMORY = 16 << 20  # a chunk as read, as float32 and as encoded, with the temporaries between

device_option = click.option(
    "--device", default="cpu", show_default=True, metavar="NAME",
    help="Where to compute: cpu, cuda (all GPUs) or cuda:N; the result is the same.",
)  # fmt: skip
_OPTIONS = (
    click.option("--split-max-size", metavar="SIZE", help="Write several files of at most SIZE (48G, 500M; decimal)."),
    click.option(
        "--split-max-tensors", type=click.IntRange(min=1), help="Write several files of at most so many tensors."
    ),
    click.option("--threads", type=click.IntRange(min=1), help="Worker threads  [default: all cores]"),
    device_option,
    click.option("--overwrite", is_flag=True, help="Replace an output that exists."),
    click.option("--no-resume", is_flag=True, help="Start over instead of going on with an unfinished output."),
    click.option("--checksums", is_flag=True, help="Write OUT.sha256 too; `inspect --verify` checks it."),
    click.option("--verify-source", is_flag=True, help="First compare the inputs with the hub's own SHA-256."),
    click.option("--timings", is_flag=True, help="Show where the time went."),
    click.option("--dry-run", is_flag=True, help="Show the plan and write nothing."),
    click.option("--quiet", is_flag=True, help="No progress and no summary."),
    click.option("--json", "as_json", is_flag=True, help="Print the plan or the result as JSON."),
)


@dataclass(frozen=True)
class RunOptions:
    """How to run: what `run_options` adds to a command."""

    split_max_size: str | None
    split_max_tensors: int | None
    threads: int | None
    device: str
    overwrite: bool
    no_resume: bool
    checksums: bool
    verify_source: bool
    timings: bool
    dry_run: bool
    quiet: bool
    as_json: bool

    def place(self) -> Device:
        """Return the device; MachineError if it cannot be used."""
        from gguf_mla.codec.device import open_device  # noqa: PLC0415 - `--help` must not pay for it

        return open_device(self.device)

    def files(self, plan: Plan, path: Path, groups: Sequence[slice] | None = None) -> Output:
        """Return the files a plan becomes: one, or the parts that `groups` or the split options ask for."""
        from gguf_mla.container import splits  # noqa: PLC0415 - `--help` must not pay for it
        from gguf_mla.errors import InputError  # noqa: PLC0415
        from gguf_mla.plan.outputs import parts, single  # noqa: PLC0415

        if groups is not None:
            return parts(plan, path, groups)
        specs = [job.spec for job in plan.tensors]
        if self.split_max_size and self.split_max_tensors:
            raise InputError("--split-max-size and --split-max-tensors exclude each other")
        if self.split_max_size:
            return parts(plan, path, splits.groups_by_size(specs, splits.parse_size(self.split_max_size)))
        if self.split_max_tensors:
            return parts(plan, path, splits.groups_by_count(specs, self.split_max_tensors))
        return single(plan, path)

    def measure(self, sources: Mapping[str, SourceTensor], imatrix: Imatrix | None) -> Measure:
        """Return what tells a budget the errors of types, with a progress bar; it costs nothing until it is called."""

        def measured(tensors: Sequence[Untyped], types: Sequence[Sequence[str]]) -> Iterator[Mapping[str, float]]:
            from tqdm import tqdm  # noqa: PLC0415 - `--help` must not pay for it

            from gguf_mla.plan.measure import errors  # noqa: PLC0415

            found = errors(tensors, types, sources, imatrix, self.threads)
            yield from tqdm(found, "measuring", len(tensors), unit=" tensors", disable=self.quiet or None)

        return measured


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of every writing job to a click command, which gets them as one `options` argument."""

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        names = RunOptions.__dataclass_fields__
        options = RunOptions(**{name: arguments.pop(name) for name in names})
        options.place()  # a device that cannot be used is the first thing to say
        command(**arguments, options=options)

    return functools.reduce(lambda inner, option: option(inner), reversed(_OPTIONS), wrapped)


def destination(out: Path | None, name: str, file_type: str) -> Path:
    """Return where an output goes: OUT with {type} filled in, NAME-TYPE.gguf in the directory OUT, or in this one."""
    if out is None:
        return Path(f"{name}-{file_type}.gguf")
    if out.is_dir():
        return out / f"{name}-{file_type}.gguf"
    return out.with_name(out.name.replace("{type}", file_type))


@dataclass(frozen=True)
class Job:
    """Plans that are written in one pass from the same sources.

    outputs    each plan with the files it becomes
    inputs     the files whose content decides that of the outputs: weights, importance
    protected  further files that no output may replace
    remarks    turns what reading the sources has shown into sentences, when all is written
    """

    outputs: Sequence[tuple[Plan, Output]]
    sources: Mapping[str, SourceTensor]
    inputs: Sequence[Path]
    importance: Importance | None = None
    protected: Iterable[Path] = ()
    remarks: Callable[[Sequence[Any]], Sequence[str]] = lambda _: ()


def launch(job: Job, options: RunOptions) -> None:
    """Check the outputs, then write them, or show what would be written."""
    paths = [planned.path for _, output in job.outputs for planned in output]
    if options.dry_run:
        _show(job, options)
        return
    replacing = options.overwrite or _is_half_named(paths[0], len(job.outputs), options)
    _check_paths(paths, (*job.inputs, *job.protected), overwrite=replacing)
    for warning in dict.fromkeys(warning for plan, _ in job.outputs for warning in plan.warnings):
        click.echo(f"warning: {warning}", err=True)
    _try_device(job, options)
    if options.verify_source:
        _verify_source(job, options)
    result = _run(job, options)
    for remark in job.remarks(result.remarks):
        click.echo(f"warning: {remark}", err=True)
    if options.as_json:
        click.echo(json.dumps(_result_json(job, result)))
    elif not options.quiet:
        click.echo(_result_text(job, result))
    if options.timings and not options.as_json:
        click.echo(_timings(result))


def _is_half_named(first: Path, outputs: int, options: RunOptions) -> bool:
    """Whether the unfinished run that will be continued has given some files their names already."""
    from gguf_mla.stream.journal import was_finished  # noqa: PLC0415 - `--help` must not pay for it

    return not options.no_resume and was_finished(first, outputs)


def _check_paths(paths: Sequence[Path], inputs: Iterable[Path], *, overwrite: bool) -> None:
    from gguf_mla.errors import InputError  # noqa: PLC0415 - `--help` must not pay for it

    read = {path.resolve() for path in inputs}
    for path in paths:
        if not path.parent.is_dir():
            remedy = "Create it or choose another place"
            raise InputError("the output's directory does not exist", file=path.parent, remedy=remedy)
        if path.resolve() in read:
            raise InputError("the output is one of the inputs", file=path, remedy="Choose another name")
        if paths.count(path) > 1:
            raise InputError("two outputs have the same name", file=path, remedy="Put {type} into the name")
        if path.is_dir():
            raise InputError("the output is a directory", file=path, remedy="Choose another name")
        if path.exists() and not overwrite:
            remedy = "Choose another name or give --overwrite"
            raise InputError("the output exists already", file=path, remedy=remedy)


def _verify_source(job: Job, options: RunOptions) -> None:
    from gguf_mla.sources.hub_cache import verify  # noqa: PLC0415 - `--help` must not pay for it

    with _bar(sum(path.stat().st_size for path in job.inputs), "verifying", options) as bar:
        verify(job.inputs, bar.update)


def _try_device(job: Job, options: RunOptions) -> None:
    """Have a device other than the CPU show that it gives the same bytes."""
    from gguf_mla.codec import trial  # noqa: PLC0415 - `--help` must not pay for it
    from gguf_mla.stream import uses  # noqa: PLC0415

    device, plans = options.place(), [plan for plan, _ in job.outputs]
    if device.name == "cpu":
        return
    tried = trial.check(device, uses.uses_in(plans, job.sources, device, weighted=job.importance is not None))
    if not options.quiet:
        click.echo(trial.report(device, tried), err=True)


def _run(job: Job, options: RunOptions) -> Result:
    from gguf_mla.cli.main import Interrupted  # noqa: PLC0415
    from gguf_mla.files import checksums  # noqa: PLC0415 - `--help` must not pay for it
    from gguf_mla.plan.jobs import NO_IMPORTANCE  # noqa: PLC0415
    from gguf_mla.stream.execute import Interrupted as Stopped  # noqa: PLC0415
    from gguf_mla.stream.execute import Resumption, execute  # noqa: PLC0415

    outputs = [output for _, output in job.outputs]
    total = sum(plan.nbytes for plan, _ in job.outputs)
    try:
        with _bar(total, outputs[0][0].path.name, options) as bar:
            return execute(
                outputs,
                job.sources,
                importance=job.importance or NO_IMPORTANCE,
                threads=options.threads,
                device=options.place(),
                progress=bar.update,
                resumption=Resumption(job.inputs, fresh=options.no_resume),
                finish=checksums.write if options.checksums else checksums.remove,
            )
    except Stopped as stop:
        raise Interrupted(*_interrupted(stop.done, stop.total, options)) from None


def _bar(total: int, name: str, options: RunOptions) -> tqdm[Any]:
    from tqdm import tqdm  # noqa: PLC0415 - `--help` must not pay for it

    # disable=None: only where standard error is a terminal
    hidden = options.quiet or None
    return tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc=name, disable=hidden)


def _interrupted(done: int, total: int, options: RunOptions) -> tuple[str, ...]:
    """Return what is done and how to go on; nothing where the command would start over."""
    from gguf_mla import units  # noqa: PLC0415 - not for `--help`

    if not done:
        return ()
    again = "Run the same command again, without --no-resume," if options.no_resume else "Run the same command again"
    return f"{units.size(done)} of {units.size(total)} are on the disk", f"{again} to go on from there"


def _show(job: Job, options: RunOptions) -> None:
    if options.as_json:
        plans = [plan.as_json() | {"out": [str(file.path) for file in output]} for plan, output in job.outputs]
        click.echo(json.dumps(plans[0] if len(plans) == 1 else {"outputs": plans}))
        return
    for plan, output in job.outputs:
        click.echo(_plan_text(plan, output, options))


def _plan_text(plan: Plan, output: Output, options: RunOptions) -> str:
    from gguf_mla import units  # noqa: PLC0415 - `--help` must not pay for it
    from gguf_mla.files.platform import free_bytes  # noqa: PLC0415
    from gguf_mla.stream.execute import default_threads  # noqa: PLC0415

    parent = output[0].path.parent
    free = units.size(free_bytes(parent)) if parent.is_dir() else f"{parent} does not exist"
    memory = BASE_MEMORY + (options.threads or default_threads()) * CHUNK_MEMORY
    files = f"{output[0].path} and {len(output) - 1} more" if output[1:] else str(output[0].path)
    rows = [
        (job.name, "x".join(map(str, job.shape)), job.stored, job.type, units.size(job.spec.nbytes), job.reason)
        for job in plan.tensors
    ]
    lines = [
        table(("tensor", "shape", "source", "type", "size", "why"), rows, right="size"),
        "",
        *_dropped(plan),
        *(f"warning: {warning}" for warning in plan.warnings),
        f"{len(plan.tensors)} tensors, {units.count(plan.parameters)} parameters, {_sizes(plan)}",
        f"output: {files}, {units.size(plan.nbytes)} of tensor data",
        f"free disk: {free}, memory: about {units.size(memory)}",
    ]
    return "\n".join(lines)


def _dropped(plan: Plan) -> Iterator[str]:
    for reason in dict.fromkeys(plan.dropped.values()):
        names = [name for name, why in plan.dropped.items() if why == reason]
        yield f"dropped: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''} ({reason})"


def _sizes(plan: Plan) -> str:
    from gguf_mla import units  # noqa: PLC0415 - `--help` must not pay for it

    shown = ", ".join(f"{name} {units.size(nbytes)}" for name, nbytes in plan.bytes_by_type().items())
    return f"{shown}, {units.bits_per_weight(plan.nbytes, plan.parameters)} bits per weight"


def _result_json(job: Job, result: Result) -> dict[str, Any]:
    first = job.outputs[0][0]
    return {
        "out": [str(path) for path in result.paths],
        "bytes": result.nbytes,
        "seconds": round(result.seconds, 3),
        "streaming_seconds": round(result.streaming_seconds, 3),
        "taken_over": result.taken_over,
        "stages": {stage: round(seconds, 3) for stage, seconds in result.stages.items()},
        "tensors": len(first.tensors),
        "parameters": first.parameters,
        "bytes_by_type": [plan.bytes_by_type() for plan, _ in job.outputs],
        "dropped": len(first.dropped),
        "warnings": [*first.warnings, *job.remarks(result.remarks)],
    }


def _result_text(job: Job, result: Result) -> str:
    from gguf_mla import units  # noqa: PLC0415 - `--help` must not pay for it

    lines = [
        f"{output[0].path}: {len(plan.tensors)} tensors, {units.count(plan.parameters)} parameters, {_sizes(plan)}"
        for plan, output in job.outputs
    ]
    rate = units.size(result.nbytes / max(result.seconds, 1e-9))
    before = f", {units.size(result.taken_over)} of it taken over" if result.taken_over else ""
    return "\n".join([*lines, f"{units.size(result.nbytes)} in {result.seconds:.1f} s ({rate}/s){before}"])


def _timings(result: Result) -> str:
    """Return where the time of all threads went, and what the run had to wait for in the end."""
    total = result.threads * result.streaming_seconds
    spent = dict(result.stages) | {"other": max(0.0, total - sum(result.stages.values()))}
    most = max(spent, key=lambda stage: spent[stage])
    rows = [(stage, f"{seconds:.2f}", f"{seconds / total:.0%}") for stage, seconds in spent.items()]
    stages = table(("stage", "seconds", "share"), rows, right="seconds,share")
    worked = f"{result.threads} threads for {result.streaming_seconds:.2f} s, most of it to {most}"
    return f"{stages}\n{worked}; then {result.seconds - result.streaming_seconds:.2f} s until all was on the disk"
