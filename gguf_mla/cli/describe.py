"""Plans and results in words and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla import units
from gguf_mla.cli.table import table
from gguf_mla.files.platform import free_bytes
from gguf_mla.plan.remarks import substituted
from gguf_mla.quoting import TEXT, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf_mla.plan.jobs import Plan
    from gguf_mla.plan.outputs import Output
    from gguf_mla.stream.execute import Result
    from gguf_mla.stream.run import Job

BASE_MEMORY = 200 << 20  # Python, numpy, numba with its kernels, a vocabulary
CHUNK_MEMORY = 16 << 20  # a chunk as read, as float32 and as encoded, with the temporaries between


def plans_json(job: Job) -> dict[str, Any]:
    """Return what would be written as JSON-ready data: the plan, or several as "outputs"."""
    plans = [plan.as_json() | {"out": [str(file.path) for file in output]} for plan, output in job.outputs]
    return plans[0] if len(plans) == 1 else {"outputs": plans}


def plan_text(plan: Plan, output: Output, threads: int) -> str:
    """Return a plan for people: every tensor with its type and why, what is left out, what it takes."""
    parent = next((place for place in output[0].path.absolute().parents if place.is_dir()), output[0].path.parent)
    free = units.size(free_bytes(parent)) if parent.is_dir() else f"{parent} does not exist"
    memory = BASE_MEMORY + threads * CHUNK_MEMORY
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
        f"{len(plan.tensors)} tensors, {units.count(plan.parameters)} parameters, {_sizes(plan)}",
        f"output: {files}, {units.size(plan.nbytes)} of tensor data",
        f"free disk: {free}, memory: about {units.size(memory)}",
    ]
    return "\n".join(lines)


def _dropped(plan: Plan) -> Iterator[str]:
    for reason in dict.fromkeys(plan.dropped.values()):
        names = [name for name, why in plan.dropped.items() if why == reason]
        yield f"dropped: {quoted(names[0])}{f' and {len(names) - 1} more' if names[1:] else ''} ({reason})"


def _sizes(plan: Plan) -> str:
    shown = ", ".join(f"{name} {units.size(nbytes)}" for name, nbytes in plan.bytes_by_type().items())
    return f"{shown}, {units.bits_per_weight(plan.nbytes, plan.parameters)} bits per weight"


def result_json(job: Job, result: Result) -> dict[str, Any]:
    """Return what was written as JSON-ready data."""
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
        "substituted": dict(first.substituted),
    }


def result_text(job: Job, result: Result) -> str:
    """Return what was written for people: a line per output, and how fast it was."""
    lines = [
        f"{output[0].path}: {len(plan.tensors)} tensors, {units.count(plan.parameters)} parameters, {_sizes(plan)}"
        for plan, output in job.outputs
    ]
    rate = units.size(result.nbytes / max(result.seconds, 1e-9))
    before = f", {units.size(result.taken_over)} of it taken over" if result.taken_over else ""
    return "\n".join([*lines, f"{units.size(result.nbytes)} in {result.seconds:.1f} s ({rate}/s){before}"])


def noteworthy(job: Job, result: Result) -> str:
    """Return in a line what of a run is worth a look, "" for nothing: how much was warned of, which types stand in."""
    said = {warning for plan, _ in job.outputs for warning in plan.warnings} | {*job.remarks(result.remarks)}
    counted = [f"{len(said)} warning{'s' * (len(said) > 1)}, see above"] if said else []
    for plan, output in job.outputs:
        if changed := substituted(plan.tensors, plan.substituted):
            counted.append(f"{output[0].path}: {changed}" if len(job.outputs) > 1 else changed)
    return f"noteworthy: {'; '.join(counted)}" if counted else ""


def timings(result: Result) -> str:
    """Return where the time of all threads went, and what the run had to wait for in the end."""
    total = result.threads * result.streaming_seconds
    spent = dict(result.stages) | {"other": max(0.0, total - sum(result.stages.values()))}
    most = max(spent, key=lambda stage: spent[stage])
    rows = [(stage, f"{seconds:.2f}", f"{seconds / total:.0%}") for stage, seconds in spent.items()]
    stages = table(("stage", "seconds", "share"), rows, right="seconds,share")
    worked = f"{result.threads} threads for {result.streaming_seconds:.2f} s, most of it to {most}"
    return f"{stages}\n{worked}; then {result.seconds - result.streaming_seconds:.2f} s until all was on the disk"
