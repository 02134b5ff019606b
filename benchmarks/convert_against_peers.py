"""How fast `gguf-mla convert` is, and how much memory it takes, beside `cp` and llama.cpp's own converter.

usage: python benchmarks/convert_against_peers.py DIRECTORY [--peer LLAMA_CPP/convert_hf_to_gguf.py]

DIRECTORY gets synthetic V3-like checkpoints (about 8 GB, kept for the next run) and the outputs (removed). Everything
is measured in one run on a warm page cache; each figure is the median of `--runs` runs, the peer's is one run.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from gguf_mla.files import platform
from tests.support import bulk
from tests.support.command import Measured, command, environment, measure

if TYPE_CHECKING:
    from collections.abc import Callable

# name → kind, layers, experts; the width is the same for all
CHECKPOINTS = {
    "BF16, small": ("v3", 4, 24),
    "BF16, large": ("v3", 10, 60),
    "FP8, small": ("v3fp8", 5, 64),
    "FP8, large": ("v3fp8", 13, 88),
}
GOALS = {"BF16": 8, "Q8_0": 9}  # times the peer
GIB, MIB = 1 << 30, 1 << 20


@dataclass(frozen=True)
class Bench:
    """Where the checkpoints are, and how often a measurement is repeated."""

    directory: Path
    runs: int
    threads: int

    def checkpoint(self, name: str) -> Path:
        """Return the checkpoint of that name, made if it is not there, and read once."""
        path = self.directory / name.replace(", ", "-").lower()
        if not path.exists():
            kind, layers, experts = CHECKPOINTS[name]
            bulk.write(path, kind, layers=layers, experts=experts)
        for file in path.iterdir():
            with file.open("rb") as stream:
                while stream.read(16 * MIB):
                    pass
        return path

    @property
    def out(self) -> Path:
        """The output of the run in progress."""
        return self.directory / "out.gguf"

    def ours(self, name: str, kind: str, env: dict[str, str] | None = None) -> tuple[Measured, dict[str, float]]:
        """Convert once; return the process and the seconds of its stages."""
        arguments = [self.checkpoint(name), self.out, "--type", kind, "--quiet", "--json", "--threads", self.threads]
        measured = self._clean(lambda: measure(command("convert", *arguments), self.directory / "report.json", env))
        result = measured.output[measured.output.index("{") :]
        return measured, json.loads(result)["stages"]

    def peer(self, converter: Path, name: str, kind: str) -> Measured:
        """Convert once with llama.cpp's converter."""
        line = [sys.executable, str(converter), str(self.checkpoint(name)), "--outfile", str(self.out)]
        env = {"PYTHONPATH": str(converter.parent / "gguf-py")}
        line += ["--outtype", kind.lower()]
        return self._clean(lambda: measure(line, self.directory / "report.json", env))

    def _clean(self, run: Callable[[], Measured]) -> Measured:
        """Run with nothing left to write from the run before, and remove the output."""
        os.sync()
        measured = run()
        assert measured.status == 0, measured.output
        self.out.unlink()
        return measured

    def copy_seconds(self, name: str, *, sync: bool) -> float:
        """Copy a checkpoint's shards with `cp`, with `sync` until they are on the disk, as a conversion ends."""
        shards = [str(path) for path in sorted(self.checkpoint(name).glob("*.safetensors"))]
        target = self.directory / "copy"
        target.mkdir()
        os.sync()
        begin = time.monotonic()
        subprocess.run(["cp", *shards, str(target)], check=True)
        if sync:
            subprocess.run(["sync", *map(str, target.iterdir())], check=True)
        seconds = time.monotonic() - begin
        shutil.rmtree(target)
        return seconds

    def first_byte_seconds(self, name: str, kind: str) -> float:
        """Measure from the start of the process to the first block of its partial file."""
        partial = self.out.with_name("out.gguf.partial")
        line = command("convert", self.checkpoint(name), self.out, "--type", kind, "--quiet")
        begin = time.monotonic()
        process = subprocess.Popen(line, env=environment())
        while not (partial.exists() and partial.stat().st_blocks):
            assert process.poll() is None, "the conversion ended too soon"
            time.sleep(0.002)
        seconds = time.monotonic() - begin
        assert process.wait() == 0
        self.out.unlink()
        return seconds

    def process_seconds(self, *arguments: object) -> float:
        """Measure a command's wall-clock time."""
        begin = time.monotonic()
        subprocess.run(command(*arguments), check=True, env=environment(), stdout=subprocess.DEVNULL)
        return time.monotonic() - begin

    def median(self, once: Callable[..., float]) -> float:
        """Return the median over the runs."""
        return statistics.median(once() for _ in range(self.runs))


def size_of(checkpoint: Path) -> int:
    """Return the bytes of a checkpoint's shards."""
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))


def row(what: str, ours: str, other: str = "", verdict: str = "") -> None:
    """Print one line of the table."""
    click.echo(f"| {what} | {ours} | {other} | {verdict} |")


def start_rows(bench: Bench) -> None:
    """Print start-up times: help, inspect, first byte, and the first run of an installation."""
    checkpoint = bench.checkpoint("FP8, small")
    row("`--help`", f"{bench.median(lambda: bench.process_seconds('--help')):.3f} s", "", "≤ 0.2 s")
    subprocess.run(command("convert", checkpoint, bench.out, "--quiet"), check=True, env=environment())
    row(
        "`inspect`, 129k vocabulary",
        f"{bench.median(lambda: bench.process_seconds('inspect', bench.out)):.3f} s",
        "",
        "≤ 0.5 s",
    )
    bench.out.unlink()
    for name, kind in (("BF16, small", "BF16"), ("FP8, small", "Q8_0")):
        seconds = bench.median(lambda name=name, kind=kind: bench.first_byte_seconds(name, kind))
        row(f"process start to first byte, {name} → {kind}", f"{seconds:.2f} s", "", "≤ 1.5 s")
    with tempfile.TemporaryDirectory() as empty:
        first, _ = bench.ours("FP8, small", "Q8_0", {"NUMBA_CACHE_DIR": empty})
        again, _ = bench.ours("FP8, small", "Q8_0", {"NUMBA_CACHE_DIR": empty})
    row(
        "first run of an installation (kernels compiled), FP8 → Q8_0",
        f"{first.seconds:.1f} s",
        f"second run {again.seconds:.1f} s",
    )


def copy_rows(bench: Bench) -> None:
    """Print BF16 → BF16 beside cp."""
    name = "BF16, small"
    nbytes = size_of(bench.checkpoint(name))
    times = [copy_times(bench, name) for _ in range(bench.runs)]
    streaming, whole, copy, synced = (nbytes / GIB / statistics.median(column) for column in zip(*times, strict=True))
    what = f"BF16 → BF16, {nbytes / GIB:.2f} GiB"
    row(
        f"{what}, streaming stage",
        f"{streaming:.2f} GiB/s",
        f"cp {copy:.2f} GiB/s",
        f"{streaming / copy:.0%} (≥ 150 %)",
    )
    row(
        f"{what}, until it is on the disk",
        f"{whole:.2f} GiB/s",
        f"cp + sync {synced:.2f} GiB/s",
        f"{whole / synced:.0%}",
    )


def copy_times(bench: Bench, name: str) -> tuple[float, float, float, float]:
    """Return the seconds of our streaming stage, of it with the final sync, of cp, and of cp with sync."""
    copy = bench.copy_seconds(name, sync=False)
    _, stages = bench.ours(name, "BF16")
    return stages["streaming"], stages["streaming"] + stages["finishing"], copy, bench.copy_seconds(name, sync=True)


def fp8_rows(bench: Bench, converter: Path | None) -> None:
    """Print FP8 → BF16 and Q8_0, whole processes, beside the peer."""
    name = "FP8, small"
    nbytes = size_of(bench.checkpoint(name))
    for kind, goal in GOALS.items():
        runs = sorted((bench.ours(name, kind)[0] for _ in range(bench.runs)), key=lambda m: m.seconds)
        ours = runs[len(runs) // 2]
        what, found = (
            f"FP8 → {kind}, {nbytes / 1e9:.2f} GB, whole process",
            f"{ours.seconds:.2f} s, {ours.peak / MIB:.0f} MiB",
        )
        if converter is None:
            row(what, found)
            continue
        peer = bench.peer(converter, name, kind)
        row(
            what,
            found,
            f"peer {peer.seconds:.1f} s, {peer.peak / MIB:.0f} MiB",
            f"{peer.seconds / ours.seconds:.1f}× (≥ {goal}×)",
        )


def memory_rows(bench: Bench) -> None:
    """Print the peak memory of a small and a large checkpoint."""
    for source, kind in (("BF16", "BF16"), ("FP8", "BF16"), ("FP8", "Q8_0"), ("FP8", "F32")):
        small, large = (
            bench.median(lambda name=f"{source}, {size}", kind=kind: bench.ours(name, kind)[0].peak)
            for size in ("small", "large")
        )
        sizes = [size_of(bench.checkpoint(f"{source}, {size}")) / 1e9 for size in ("small", "large")]
        row(
            f"peak memory {source} → {kind}, {sizes[0]:.1f} GB and {sizes[1]:.1f} GB",
            f"{small / MIB:.0f} MiB and {large / MIB:.0f} MiB",
            "",
            f"{large / small - 1:+.1%} (< 10 %, < 1024 MiB)",
        )


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--peer", type=click.Path(exists=True, path_type=Path), help="llama.cpp's convert_hf_to_gguf.py")
@click.option("--runs", default=3, show_default=True, help="measurements per figure")
@click.option("--threads", default=platform.cores(), show_default=True)
@click.option("--without-memory", is_flag=True, help="leave out the large checkpoints")
def main(directory: Path, peer: Path | None, runs: int, threads: int, without_memory: bool) -> None:
    """Measure and print a table."""
    directory.mkdir(parents=True, exist_ok=True)
    bench = Bench(directory, runs, threads)
    click.echo(f"{threads} threads, median of {runs} runs, load {os.getloadavg()[0]:.1f} at the start\n")
    row("measurement", "gguf-mla", "other", "goal")
    row("---", "---", "---", "---")
    start_rows(bench)
    copy_rows(bench)
    fp8_rows(bench, peer.resolve() if peer else None)
    if not without_memory:
        memory_rows(bench)


if __name__ == "__main__":
    main()
