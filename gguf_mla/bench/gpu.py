"""`gguf-mla bench gpu`: what a CUDA device makes of every type, next to what its memory, its bus and the disk allow.

Rates are 10⁹ bytes per second. A kernel's traffic is what it has to read and write, and its share is that of a copy
within the device's memory, the fastest thing there is.
"""

from __future__ import annotations

import filecmp
import re
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from gguf_mla import codec, ggtypes, units
from gguf_mla.bench import rehearsal
from gguf_mla.bench.types import best_time, wanted_types
from gguf_mla.cli.document import answer
from gguf_mla.cli.table import table
from gguf_mla.codec import on_cuda, trial
from gguf_mla.codec.cuda_kernels import SIMULATED
from gguf_mla.codec.device import open_device
from gguf_mla.errors import InputError
from gguf_mla.files import platform
from gguf_mla.files.output import OutputFile
from gguf_mla.synthetic import checkpoints, shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gguf_mla.codec.on_cuda import Cuda, GpuStream
    from gguf_mla.ggtypes import TensorType

Array = np.ndarray[Any, Any]
COLS, FILE_TYPE = 2048, "Q4_K_M"
SAMPLE_ROWS = 256  # that differ; further ones repeat them
COPY = {"in its memory": 2, "up": 1, "down": 1}  # how often a copy's bytes cross what is measured


@dataclass(frozen=True)
class KernelSpeed:
    """One line: float32 bytes per second in `gb_per_s`, bytes read and written in `traffic`, its share of a copy's."""

    type: str
    action: str
    gb_per_s: float
    traffic: float
    share: float


@dataclass(frozen=True)
class EndToEnd:
    """A whole file quantized: bytes of the source per second, and what else could take or give them."""

    device: str
    source_bytes: int
    output_bytes: int
    seconds: float
    gb_per_s: float
    same_as_cpu: bool | None


@dataclass(frozen=True)
class Report:
    """Everything that was measured."""

    device: str
    cores: int
    copies: dict[str, float]
    kernels: list[KernelSpeed]
    core_gb_per_s: float
    read_gb_per_s: float
    files: list[EndToEnd]


def copies(stream: GpuStream, nbytes: int, seconds: float) -> dict[str, float]:
    """Return bytes per second of copies of `nbytes`: within the device's memory (read and written), up, and down."""
    host = stream.staged("copy", (nbytes,), np.dtype(np.uint8))
    host[:] = 0
    here, there = (stream.room(name, (nbytes,), np.dtype(np.uint8)) for name in ("copy", "copy to"))
    runs: dict[str, Callable[[], object]] = {
        "in its memory": lambda: there.copy_to_device(here, stream=stream.queue),
        "up": lambda: here.copy_to_device(host, stream=stream.queue),
        "down": lambda: here.copy_to_host(host, stream=stream.queue),
    }
    return {name: COPY[name] * nbytes / _time(stream, run, seconds) / 1e9 for name, run in runs.items()}


def _time(stream: GpuStream, run: Callable[[], object], seconds: float) -> float:
    """Shortest time of one run on the device, of those that fit into `seconds`."""

    def finished() -> None:
        run()
        stream.queue.synchronize()

    return best_time(finished, seconds)


def kernels(device: Cuda, wanted: Sequence[TensorType], rows: int, seconds: float, copied: float) -> list[KernelSpeed]:
    """Time every kernel of block types on rows that are in the device's memory already."""
    sample = np.random.default_rng(0).standard_normal((min(rows, SAMPLE_ROWS), COLS), np.float32) * np.float32(0.02)
    x = np.resize(sample, (rows, COLS))
    importance = np.random.default_rng(1).random(COLS, np.float32)
    found = []
    for use in (use for tensor_type in wanted for use in trial.uses(tensor_type.name)):
        tensor_type = ggtypes.by_name(use.type)
        with device.stream() as stream:
            took = _time(stream, _kernel(stream, use, x, importance), seconds)
        traffic = (x.nbytes + rows * tensor_type.row_bytes(COLS)) / took / 1e9
        found.append(KernelSpeed(tensor_type.name, use.action, x.nbytes / took / 1e9, traffic, traffic / copied))
    return found


def _kernel(stream: GpuStream, use: trial.Use, x: Array, importance: Array) -> Callable[[], object]:
    """Bring up what a kernel works on, and return what queues it."""
    encoding = use.encoding
    if encoding is not None:
        values, weights = stream.up("values", x), importance if encoding.weighted else None
        return lambda: on_cuda.encoded(stream, encoding, values, weights)
    tensor_type = ggtypes.by_name(use.type)
    data = codec.encode(x[:SAMPLE_ROWS], use.type, importance=importance)
    stored = stream.up("stored", np.resize(data, (len(x), tensor_type.row_bytes(COLS))).reshape(-1))
    room = stream.room("values", x.shape, x.dtype)
    return lambda: on_cuda.decoded(stream, tensor_type, stored, room)


def core_rate(seconds: float) -> float:
    """Return float32 bytes per second of Q4_K on one core of this machine's CPU."""
    x = np.random.default_rng(0).standard_normal((SAMPLE_ROWS, COLS), np.float32)
    return x.nbytes / best_time(lambda: codec.encode(x, "Q4_K"), seconds) / 1e9


def read_rate(path: Path) -> float:
    """Return bytes per second of reading a file and doing nothing with it, from the disk where that can be had."""
    with path.open("rb", buffering=0) as file:
        platform.was_read(file.fileno(), 0, 0)
        buffer, begin = bytearray(16 << 20), time.perf_counter()
        while file.readinto(buffer):
            pass
        return path.stat().st_size / (time.perf_counter() - begin) / 1e9


def end_to_end(source: Path, directory: Path, devices: Sequence[str], file_type: str = FILE_TYPE) -> list[EndToEnd]:
    """Quantize a GGUF file on each device, from the disk to the disk; compare all outputs with the first one's."""
    outputs: list[Path] = []
    found = []
    for number, name in enumerate(devices):
        out = directory / f"{number}.gguf"
        run = rehearsal.measure("quantize", source, out, file_type, "--device", name, "--quiet", "--allow-requantize")
        seconds, size = rehearsal.writing_seconds(run.output), source.stat().st_size
        same = filecmp.cmp(outputs[0], out, shallow=False) if outputs else None
        found.append(EndToEnd(name, size, out.stat().st_size, seconds, size / seconds / 1e9, same))
        outputs.append(out)
    return found


def measure(
    device: Cuda, wanted: Sequence[TensorType], rows: int, seconds: float, source: Path | None, directory: Path
) -> Report:
    """Measure everything; `source` is a GGUF file to quantize, None for none."""
    one = device.members()[0]
    with one.stream() as stream:
        copied = copies(stream, rows * COLS * 4, seconds)
    files = end_to_end(source, directory, ("cpu", device.name)) if source else []
    return Report(
        device=device.title,
        cores=platform.cores(),
        copies=copied,
        kernels=kernels(one, wanted, rows, seconds, copied["in its memory"]),
        core_gb_per_s=core_rate(seconds),
        read_gb_per_s=read_rate(source) if source else 0.0,
        files=files,
    )


def as_text(report: Report) -> str:
    """Return the measurements as tables."""
    head = f"{report.device}; {report.cores} CPU cores\n\nCopies:"
    rates = [(name, f"{rate:.1f}") for name, rate in report.copies.items()]
    lines = [
        (
            k.type,
            k.action.replace("_weighted", " with importance"),
            f"{k.gb_per_s:.1f}",
            f"{k.traffic:.1f}",
            f"{k.share:.0%}",
        )
        for k in report.kernels
    ]
    q4 = next((k for k in report.kernels if (k.type, k.action) == ("Q4_K", "encode")), None)
    core = f"One core of this CPU encodes Q4_K at {report.core_gb_per_s:.2f} GB/s"
    core += f"; the device is {q4.gb_per_s / report.core_gb_per_s:.0f} times as fast." if q4 else "."
    columns = ("type", "kernel", "float32 GB/s", "traffic GB/s", "of a copy")
    blocks = [head, table(("copy", "GB/s"), rates, right="GB/s"), "\nKernels, data resident:"]
    blocks += [table(columns, lines, right=",".join(columns[2:])), f"\n{core}"]
    return "\n".join([*blocks, *(["", _files(report)] if report.files else [])])


def _files(report: Report) -> str:
    said = {None: "–", True: "same", False: "DIFFERENT"}
    rows = [
        (f.device, f"{f.seconds:.1f} s", f"{f.gb_per_s:.2f}", units.size(f.source_bytes), units.size(f.output_bytes),
         said[f.same_as_cpu])
        for f in report.files
    ]  # fmt: skip
    columns = ("device", "time", "GB/s", "source", "output", "bytes")
    limits = {"the way up to the device": report.copies["up"], "reading the file": report.read_gb_per_s}
    nearest = min(limits, key=lambda name: limits[name])
    shown = ", ".join(f"{name} {rate:.1f} GB/s" for name, rate in limits.items())
    shown_table = table(columns, rows, right="time,GB/s,source,output")
    share = report.files[-1].gb_per_s / limits[nearest]
    reached = f"Limits: {shown}; {share:.0%} of the lower one is reached."
    return f"{FILE_TYPE} of a BF16 file, disk to disk:\n{shown_table}\n\n{reached}"


def document(report: Report, command: str) -> str:
    """Return the page docs/benchmarks/gpu-NAME.md."""
    return (
        f"# {report.device}\n\nWritten by `{command}`. GB are 10⁹ bytes, times the best of several runs.\n\n"
        f"```\n{as_text(report)}\n```\n"
    )


def slug(title: str) -> str:
    """Return a device's title as part of a file's name: nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def run(
    device: str, names: str | None, rows: int, seconds: float, fraction: str, parent: Path, out: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure in a temporary directory of `parent`, print what came of it, and write the page into `out`."""
    gpu: Any = open_device(device)
    if gpu.name == "cpu":
        raise InputError("the CPU is not a CUDA device", expected="cuda or cuda:N", found=gpu.name)
    wanted = [tensor_type for tensor_type in wanted_types(names) if tensor_type.block > 1]
    trial.check(gpu, [use for tensor_type in wanted for use in trial.uses(tensor_type.name)])
    with tempfile.TemporaryDirectory(dir=parent, prefix="gguf-mla-bench-") as directory:
        source = None if fraction == "0" else model(Path(directory), units.parse_fraction(fraction))
        report = measure(gpu, wanted, rows, seconds, source, Path(directory))
    if as_json:
        answer(measurements=[asdict(report)])
    else:
        click.echo(as_text(report))
    if out is not None and not SIMULATED:
        page = out / f"gpu-{slug(report.device)}.md"
        text = document(report, f"gguf-mla bench gpu --rows {rows} --fraction {fraction}")
        with OutputFile(page, 0, overwrite=True) as file:
            file.put(text.encode())
    if any(file.same_as_cpu is False for file in report.files):
        raise click.exceptions.Exit(1)


def model(directory: Path, fraction: float) -> Path:
    """Write a BF16 file with random weights and matrices as wide as DeepSeek-V3's."""
    small = shapes.reduced(shapes.SHAPES["deepseek-v3"], fraction)
    checkpoints.write(directory / "checkpoint", small, checkpoints.random_weights())
    rehearsal.measure("convert", directory / "checkpoint", directory / "source.gguf", "--type", "BF16", "--quiet")
    return directory / "source.gguf"
