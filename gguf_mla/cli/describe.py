"""Plans and results in words and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import units
from gguf_mla.cli import network, sending
from gguf_mla.cli.outcome import outputs
from gguf_mla.cli.table import table
from gguf_mla.files.platform import free_bytes
from gguf_mla.plan.remarks import substituted
from gguf_mla.quoting import TEXT, quoted
from gguf_mla.stream.rehearse import parent_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gguf_mla.plan.jobs import Plan
    from gguf_mla.plan.outputs import Output
    from gguf_mla.remote.destination import Destination
    from gguf_mla.stream.execute import Result
    from gguf_mla.stream.run import Job

BASE_MEMORY = 200 << 20  # Python, numpy, numba with its kernels, a vocabulary
CHUNK_MEMORY = 16 << 20  # a chunk as read, as float32 and as encoded, with the temporaries between

# The fields of a document's `run`, in their order.
RUN = ("dry", "beside", "removed", "threads", "memory", "free", "taken_over", "work", "network", "upload")


def plan_json(job: Job, threads: int, lacking: Sequence[str], sink: Destination | None) -> dict[str, Any]:
    """Return what a document says of a run that was not made; `lacking` says what room it would not have."""
    run = {
        "dry": True,
        "threads": threads,
        "memory": memory(threads),
        "taken_over": None,
        "work": None,
        "network": network.needs_json(job),
        "upload": sending.result_json(sink),
    }
    return _content(job, lacking, run) | {"outputs": outputs(job, planned=True, checked=False)}


def result_json(
    job: Job, result: Result, planning: float, sink: Destination | None, *, checked: bool
) -> dict[str, Any]:
    """Return what a document says of a run; `planning` is how many seconds were spent before."""
    run = {
        "dry": False,
        "threads": result.threads,
        "memory": None,
        "taken_over": result.taken_over,
        "work": {stage: round(seconds, 3) for stage, seconds in result.stages.items()},
        "network": network.result_json(job),
        "upload": sending.result_json(sink),
    }
    return _content(job, job.remarks(result.remarks), run) | {
        "outputs": outputs(job, planned=False, checked=checked, sums={} if sink is None else sink.sums),
        "stages": {
            "planning": planning,
            "streaming": result.streaming_seconds,
            "finishing": result.seconds - result.streaming_seconds,
        },
    }


def _content(job: Job, remarks: Iterable[str], run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of a run, made or not: `run` lacks what both say of it."""
    warnings = [warning for plan, _ in job.outputs for warning in plan.warnings]
    both = {
        "beside": [str(extra.path) for extra in job.extras],
        "removed": [str(path) for path in job.consumed],
        "free": free_bytes(parent_of(job.outputs[0][1][0].path)),
    }
    known = {**both, **run}
    return {
        "inputs": job.inputs,
        "warnings": dict.fromkeys([*warnings, *remarks]),
        "run": {field: known[field] for field in RUN},
    }


def memory(threads: int) -> int:
    """Return about how many bytes of memory so many threads take."""
    return BASE_MEMORY + threads * CHUNK_MEMORY


def job_text(job: Job, threads: int, lacking: Sequence[str], sink: Destination | None) -> str:
    """Return the plans of a run for people, and what it would remove."""
    lines = [plan_text(plan, output, threads) for plan, output in job.outputs]
    lines += [*network.needs_text(job), *sending.plan_text(job, sink)]
    lines += [f"removed in the end: {path}" for path in job.consumed]
    lines += [f"warning: {sentence}" for sentence in lacking]
    return "\n".join(lines)


def plan_text(plan: Plan, output: Output, threads: int) -> str:
    """Return a plan for people: every tensor with its type and why, what is left out, what it takes."""
    free = units.size(free_bytes(parent_of(output[0].path)))
    files = f"{output[0].path} and {len(output) - 1} more" if output[1:] else str(output[0].path)
    rows = [
        (job.name, "x".join(map(str, job.shape)), job.stored, job.type, units.size(job.spec.nbytes), job.reason)
        for job in plan.tensors
    ]
    lines = [
        table(("tensor", "shape", "source", "type", "size", "why"), rows, right="size"),
        "",
        *_dropped(plan),
        *(f"warning: {quoted(warning, TEXT)}" for warning in plan.warnings),
        _held(plan),
        f"output: {files}, {units.size(plan.nbytes)} of tensor data",
        f"free disk: {free}, memory: about {units.size(memory(threads))}",
    ]
    return "\n".join(lines)


def _dropped(plan: Plan) -> Iterator[str]:
    for reason in dict.fromkeys(plan.dropped.values()):
        names = [name for name, why in plan.dropped.items() if why == reason]
        yield f"dropped: {quoted(names[0])}{f' and {len(names) - 1} more' if names[1:] else ''} ({reason})"


def _held(plan: Plan) -> str:
    """Return what a file holds: how many tensors, their sizes by type, and what a weight takes."""
    if not plan.tensors:
        return "metadata and vocabulary, no tensors"
    shown = ", ".join(f"{name} {units.size(nbytes)}" for name, nbytes in plan.bytes_by_type().items())
    bits = units.bits_per_weight(plan.nbytes, plan.parameters)
    return f"{len(plan.tensors)} tensors, {units.count(plan.parameters)} parameters, {shown}, {bits} bits per weight"


def result_text(job: Job, result: Result, seconds: float, sink: Destination | None) -> str:
    """Return what was written for people: a line per output, and how fast all of it was, measuring included."""
    lines = [f"{output[0].path}: {_held(plan)}" for plan, output in job.outputs]
    rate = units.size(result.nbytes / max(seconds, 1e-9))
    before = f", {units.size(result.taken_over)} of it taken over" if result.taken_over else ""
    return "\n".join(
        [
            *lines,
            f"{units.size(result.nbytes)} in {seconds:.1f} s ({rate}/s){before}",
            *network.result_text(job),
            *sending.result_text(sink),
        ]
    )


def noteworthy(job: Job, result: Result) -> Iterator[str]:
    """Yield what of a run is worth a look, a line each: how much was warned of, which types stand in for others."""
    if said := {warning for plan, _ in job.outputs for warning in plan.warnings} | {*job.remarks(result.remarks)}:
        yield f"noteworthy: {len(said)} warning{'s' * (len(said) > 1)}, see above"
    for plan, output in job.outputs:
        if changed := substituted(plan.tensors, plan.substituted):
            yield f"noteworthy: {f'{output[0].path}: ' if len(job.outputs) > 1 else ''}{changed}"


def timings(result: Result, planning: float) -> str:
    """Return where the time of all threads went, and what the run had to wait for in the end."""
    total = result.threads * result.streaming_seconds
    spent = dict(result.stages) | {"other": max(0.0, total - sum(result.stages.values()))}
    most = max(spent, key=lambda stage: spent[stage])
    rows = [(stage, f"{seconds:.2f}", f"{seconds / total:.0%}") for stage, seconds in spent.items()]
    stages = table(("stage", "seconds", "share"), rows, right="seconds,share")
    worked = f"{result.threads} threads for {result.streaming_seconds:.2f} s, most of it to {most}"
    rest = result.seconds - result.streaming_seconds
    return f"{stages}\nplanned for {planning:.2f} s; {worked}; then {rest:.2f} s until all was on the disk"
