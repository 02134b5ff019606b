"""`gguf-mla bench imatrix`: the matrix of a large model, rehearsed.

A fraction of the model with random weights, its matrices as wide as the whole one's, is run over random tokens. The
work is proportional to the weights that a token meets, so the rate of the fraction gives the time of the whole; memory
and the states on the disk depend on neither.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from gguf_mla import units
from gguf_mla.bench.rehearsal import measure
from gguf_mla.cli.document import answer
from gguf_mla.cli.table import table
from gguf_mla.errors import InputError
from gguf_mla.files import platform
from gguf_mla.files.output import unwritable
from gguf_mla.synthetic import checkpoints, shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

READING = 1e9  # bytes a second of a disk, for the projection


@dataclass(frozen=True)
class Rehearsal:
    """A fraction run over some tokens, and what follows for the whole; rates in multiplications and additions a second.

    sgemm    the machine's own rate in a product of 1024 x hidden by hidden x hidden
    experts  the rate in the products of experts
    """

    parameters: int
    fraction_parameters: int
    tokens: int
    seconds: float
    peak: int
    spill: int
    stages: Mapping[str, float]
    sgemm: float
    rate: float
    experts: float
    whole_seconds: float
    whole_spill: int
    whole_reading: float


def met(config: Mapping[str, Any]) -> tuple[float, float]:
    """Return how many weights a token is multiplied with, in all layers, and how many of them are of experts."""
    share = config["num_experts_per_tok"] / config["n_routed_experts"]
    experts = others = 0.0
    for name, shape in shapes.shapes(config).items():
        if len(shape) == 2 and "embed_tokens" not in name and "lm_head" not in name:
            of_experts = ".mlp.experts." in name
            experts += share * math.prod(shape) if of_experts else 0
            others += 0 if of_experts else math.prod(shape)
    return experts + others, experts


def runnable(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration whose groups have enough experts for all that a token chooses."""
    least = -(-config["num_experts_per_tok"] // config.get("topk_group", 1)) * config.get("n_group", 1)
    return config | {"n_routed_experts": max(config["n_routed_experts"], least)}


def spilled(config: Mapping[str, Any], tokens: int) -> int:
    """Return the bytes of the files beside a run: states before a layer and after it, and what experts add."""
    hidden, streams = int(config["hidden_size"]), int(config.get("hc_mult", 1))
    return 4 * tokens * hidden * (2 * streams + 1)


def sgemm(hidden: int, threads: int) -> float:
    """Return this machine's rate in a product of float32 matrices."""
    import torch  # noqa: PLC0415 - only this measurement needs it

    torch.set_num_threads(threads)
    x, y = torch.ones(1024, hidden), torch.ones(hidden, hidden)
    torch.mm(x, y)
    begin = time.perf_counter()
    torch.mm(x, y)
    return 2 * 1024 * hidden * hidden / (time.perf_counter() - begin)


def rehearse(directory: Path, shape: str, fraction: float, tokens: int, threads: int, device: str) -> Rehearsal:
    """Run a fraction of a model over tokens, in a directory that has room for the fraction and its states."""
    config, context = shapes.SHAPES[shape], 512
    small = runnable(shapes.reduced(config, fraction))
    count = max(2, tokens // context) * context
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], count)
    try:
        checkpoints.write(directory / "fraction", small, checkpoints.random_weights())
        np.save(directory / "tokens.npy", ids)
    except OSError as error:
        raise unwritable(directory, error) from None
    line = ("imatrix", directory / "fraction", directory / "out.gguf", "--tokens", directory / "tokens.npy", "--no-ppl")
    ran = measure(*line, "--threads", threads, "--device", device)
    (of_fraction, of_experts), (of_whole, _) = met(small), met(config)
    stages = ran.output["stages"]
    hidden, computing = config["hidden_size"], sum(stages.values())
    return Rehearsal(
        parameters=shapes.parameters(config), fraction_parameters=shapes.parameters(small), tokens=count,
        seconds=ran.seconds, peak=ran.peak, spill=spilled(small, count), stages=stages,
        sgemm=sgemm(hidden, threads), rate=2 * of_fraction * count / computing,
        experts=2 * of_experts * count / stages["experts"], whole_seconds=computing * of_whole / of_fraction,
        whole_spill=spilled(config, count),
        whole_reading=sum(tensor.nbytes for tensor in checkpoints.tensors(config)) / READING,
    )  # fmt: skip


def report(shape: str, threads: int, device: str, done: Rehearsal) -> str:
    """Return the rehearsal as a table and sentences."""
    total = sum(done.stages.values())
    rows = [(name, f"{seconds:.1f} s", f"{seconds / total:.0%}") for name, seconds in done.stages.items()]
    giga = [round(rate / 1e9) for rate in (done.rate, done.experts, done.sgemm)]
    size = f"{units.count(done.fraction_parameters)} of {units.count(done.parameters)} parameters"
    lines = [
        f"{shape}: {size}, {done.tokens} tokens, {threads} threads on {device}:",
        f"{_sizes(done, done.seconds, done.spill)}\n",
        table(("pass", "time", "share"), rows, right="time,share"),
        "\nArithmetic: {} GFLOP/s in all, {} in the products of experts; the machine's sgemm has {}.".format(*giga),
        f"The whole, over as many tokens: {_sizes(done, done.whole_seconds, done.whole_spill)}",
        f"and {done.whole_reading / 60:.0f} min of reading at 1 GB/s.",
    ]
    return "\n".join(lines)


def _sizes(done: Rehearsal, seconds: float, spill: int) -> str:
    took = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.1f} h"
    return f"{took}, {units.size(done.peak)} of memory, {units.size(spill)} of states on the disk"


def run(shape: str, fraction: str, tokens: int, threads: int | None, device: str, parent: Path, as_json: bool) -> None:
    """Rehearse in a temporary directory of `parent` and print what came of it."""
    part = units.parse_fraction(fraction)
    if shape not in shapes.SHAPES:
        raise InputError("--shape is not known", expected=" or ".join(shapes.SHAPES), found=shape)
    count = threads or platform.cores()
    with tempfile.TemporaryDirectory(dir=parent, prefix="gguf-mla-bench-") as directory:
        done = rehearse(Path(directory), shape, part, tokens, count, device)
    if as_json:
        answer(measurements=[asdict(done)])
    else:
        click.echo(report(shape, count, device, done))
