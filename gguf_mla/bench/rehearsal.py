"""`gguf-mla bench convert`: the largest models, rehearsed.

All of a model is planned from headers without content; a fraction with random weights, its matrices as wide as the
whole one's, is converted for real. Work is proportional to the weights, so the rates of the fraction give the time of
the whole; the plan gives its size, and memory depends on neither.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from gguf_mla import units
from gguf_mla.cli.document import answer
from gguf_mla.cli.table import table
from gguf_mla.codec.device import open_device
from gguf_mla.errors import InputError, MachineError
from gguf_mla.files import platform
from gguf_mla.files.output import unwritable
from gguf_mla.synthetic import checkpoints, shapes


@dataclass(frozen=True)
class Measured:
    """What a process printed as JSON, its wall-clock seconds and its peak resident bytes."""

    output: Any
    seconds: float
    peak: int


@dataclass(frozen=True)
class Rehearsal:
    """One file type: the plan of the whole, the conversion of the fraction, and what follows for the whole."""

    type: str
    shards: int
    source_bytes: int
    parameters: int
    tensors: int
    plan_seconds: float
    plan_peak: int
    fraction_parameters: int
    fraction_bytes: int
    fraction_seconds: float
    fraction_peak: int
    stages: dict[str, float]
    whole_seconds: float
    whole_bytes: int


def measure(*arguments: object) -> Measured:
    """Run the command in a process of its own; MachineError with what it said if it fails."""
    begin = time.monotonic()
    line = [sys.executable, "-m", "gguf_mla", *map(str, arguments), "--json"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=said, text=True)  # noqa: S603 - our own command
        with process.stdout as stdout:  # type: ignore[union-attr]  # it is a pipe
            output = stdout.read()
        peak = platform.wait(process)
        if process.returncode:
            said.seek(0)
            last = said.read().strip().rpartition("\n")[2]
            raise MachineError(f"the rehearsal failed: {last.removesuffix('.')}")
    return Measured(json.loads(output), time.monotonic() - begin, peak)


def writing_seconds(document: Any) -> float:
    """Return how long a run took from its plan until everything was on the disk, by what it printed."""
    return float(document["stages"]["streaming"] + document["stages"]["finishing"])


def rehearse(
    directory: Path, shape: str, fraction: float, names: tuple[str, ...], threads: int, device: str = "cpu"
) -> list[Rehearsal]:
    """Plan a whole model and convert a fraction of it, in a directory that has room for the fraction twice."""
    config = shapes.SHAPES[shape]
    small = shapes.reduced(config, fraction)
    try:
        shards = checkpoints.write(directory / shape, config, checkpoints.hollow)
        checkpoints.write(directory / "fraction", small, checkpoints.random_weights())
    except OSError as error:
        raise unwritable(directory, error) from None
    source_bytes = sum(tensor.nbytes for tensor in checkpoints.tensors(config))
    out, how, done = directory / "out.gguf", ("--threads", threads, "--device", device), []
    for name in names:
        plan = measure("convert", directory / shape, out, "--type", name, "--dry-run")
        run = measure("convert", directory / "fraction", out, "--type", name, *how)
        out.unlink()
        [planned], [written], seconds = plan.output["outputs"], run.output["outputs"], writing_seconds(run.output)
        done.append(
            Rehearsal(
                type=name, shards=shards, source_bytes=source_bytes, parameters=planned["parameters"],
                tensors=planned["tensors"], plan_seconds=plan.seconds, plan_peak=plan.peak,
                fraction_parameters=written["parameters"], fraction_bytes=written["bytes"],
                fraction_seconds=seconds, fraction_peak=run.peak, stages=run.output["run"]["work"],
                whole_seconds=seconds * planned["parameters"] / written["parameters"],
                whole_bytes=planned["tensor_bytes"],
            )
        )  # fmt: skip
    return done


def report(shape: str, threads: int, done: list[Rehearsal], device: str = "cpu") -> str:
    """Return the rehearsal as tables."""
    first = done[0]
    plans = [(r.type, r.tensors, f"{r.plan_seconds:.1f} s", units.size(r.plan_peak)) for r in done]
    runs = [
        (
            r.type, units.count(r.fraction_parameters), units.size(r.fraction_bytes), f"{r.fraction_seconds:.1f} s",
            units.size(r.fraction_bytes / r.fraction_seconds) + "/s", units.size(r.fraction_peak), _most(r),
        )
        for r in done
    ]  # fmt: skip
    whole = [
        (r.type, f"{r.whole_seconds / 60:.0f} min", units.size(r.fraction_peak), units.size(r.whole_bytes))
        for r in done
    ]
    size = f"{units.count(first.parameters)} parameters, {first.shards} shards, {units.size(first.source_bytes)}"
    columns = ("type", "parameters", "output", "time", "rate", "memory", "most time")
    return "\n".join(
        [
            f"{shape}: {size}\n\nThe whole, planned:",
            table(("type", "tensors", "time", "memory"), plans, right="tensors,time,memory"),
            f"\nA fraction, converted with {threads} threads on {device}:",
            table(columns, runs, right="parameters,output,time,rate,memory"),
            "\nThe whole, at these rates:",
            table(("type", "time", "memory", "disk"), whole, right="time,memory,disk"),
        ]
    )


def _most(rehearsal: Rehearsal) -> str:
    total = sum(rehearsal.stages.values())
    stage = max(rehearsal.stages, key=lambda name: rehearsal.stages[name])
    return f"{stage} {rehearsal.stages[stage] / total:.0%}"


def run(
    shape: str, fraction: str, names: tuple[str, ...], threads: int | None, device: str, parent: Path, as_json: bool
) -> None:
    """Rehearse in a temporary directory of `parent` and print what came of it."""
    part = units.parse_fraction(fraction)
    if shape not in shapes.SHAPES:
        raise InputError("--shape is not known", expected=" or ".join(shapes.SHAPES), found=shape)
    count, _ = threads or platform.cores(), open_device(device)
    with tempfile.TemporaryDirectory(dir=parent, prefix="gguf-mla-bench-") as directory:
        done = rehearse(Path(directory), shape, part, names, count, device)
    if as_json:
        answer(measurements=[asdict(one) for one in done])
    else:
        click.echo(report(shape, count, done, device))
