"""How fast quantized files are made, beside llama.cpp's converter and llama-quantize; every tensor is compared.

usage: python benchmarks/quantize_against_peers.py DIRECTORY --converter PEER_CONVERTER.py --quantizer LLAMA_QUANTIZE

DIRECTORY gets a synthetic V3-like FP8 checkpoint (1.4 GB, kept for the next run) and the outputs (removed). Both sides
use the same number of threads; ours is the median of `--runs` runs, the peer's is one run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from gguf_mla.container.reader import open_gguf
from tests.support import bulk
from tests.support.command import Measured, command, measure

GIB = 1 << 30
TOGETHER = (("Q4_K_M", "IQ4_XS", "Q8_0"), ("Q8_0", "Q5_0", "Q4_0"))
GOALS = {"Q4_K_M": "≥ 8×", "IQ4_XS": "≥ 16×", "Q8_0": "≥ 9×", "IQ3_XXS": "≥ 4×", "IQ2_XS": "≥ 4×"}
WITH_IMPORTANCE = {"IQ3_XXS", "IQ2_XS"}
TEXT = Path(__file__).parents[1] / "docs" / "verification.md"  # what importance is collected from


@dataclass(frozen=True)
class Bench:
    """Where everything is, and the peers."""

    directory: Path
    converter: Path
    quantizer: Path
    threads: int
    runs: int

    @property
    def checkpoint(self) -> Path:
        """The FP8 checkpoint, made if it is not there."""
        path = self.directory / "fp8-small"
        if not path.exists():
            bulk.write(path, "v3fp8", layers=5, experts=64)
        return path

    @property
    def bf16(self) -> Path:
        """The peer's BF16 file of it."""
        return self.directory / "bf16.gguf"

    @property
    def importance(self) -> Path:
        """The importance matrix of the checkpoint, made if it is not there."""
        path = self.directory / "importance.gguf"
        if not path.exists():
            self.run(*command("imatrix", self.checkpoint, path, "--text", TEXT, "--chunks", 8, "--quiet"))
        return path

    def matrix(self, name: str) -> tuple[object, ...]:
        """Return the option that gives the importance matrix to a type that takes one here."""
        return ("--imatrix", self.importance) if name in WITH_IMPORTANCE else ()

    def run(self, *line: object) -> Measured:
        """Run and measure a command line that succeeds."""
        measured = measure([str(word) for word in line], self.directory / "report.json")
        assert measured.status == 0, measured.output
        return measured

    def ours(self, job: str, source: Path, out: str, *types: str) -> Measured:
        """Return the median of our runs."""
        flags = [word for name in types for word in ("--type", name)] if job == "convert" else types
        options = ("--quiet", "--overwrite", "--threads", self.threads, *self.matrix(types[0]))
        line = command(job, source, self.directory / out, *flags, *options)
        runs = sorted((self.run(*line) for _ in range(self.runs)), key=lambda run: run.seconds)
        return runs[len(runs) // 2]

    def convert(self) -> Measured:
        """Make the peer's BF16 file."""
        line = (sys.executable, self.converter, self.checkpoint, "--outfile", self.bf16, "--outtype", "bf16")
        return self.run(*line)

    def quantize(self, name: str) -> Measured:
        """Make the peer's quantized file."""
        return self.run(self.quantizer, *self.matrix(name), self.bf16, self.directory / "peer.gguf", name, self.threads)

    def same(self, out: str) -> str:
        """Tell whether all tensors of an output are the peer's."""
        ours, peer = open_gguf(self.directory / out), open_gguf(self.directory / "peer.gguf")
        equal = ours.tensors.keys() == peer.tensors.keys() and all(
            tensor.type == peer.tensors[name].type and tensor.read().tobytes() == peer.tensors[name].read().tobytes()
            for name, tensor in ours.tensors.items()
        )
        return "every tensor the same" if equal else "TENSORS DIFFER"


def row(what: str, ours: Measured, peer_seconds: float, goal: str, verdict: str) -> None:
    """Print one line of the table."""
    ratio = peer_seconds / ours.seconds
    memory = f"{ours.peak / (1 << 20):.0f} MiB"
    click.echo(
        f"| {what} | {ours.seconds:.1f} s, {memory} | {peer_seconds:.1f} s | {ratio:.1f}× | {goal} | {verdict} |"
    )


def rows(bench: Bench, types: tuple[str, ...]) -> None:
    """Print the table of these types."""
    click.echo("| from → to | gguf-mla | llama.cpp | | goal | |\n| --- | --- | --- | --- | --- | --- |")
    converted = bench.convert().seconds
    for name in types:
        quantized = bench.quantize(name).seconds
        ours = bench.ours("convert", bench.checkpoint, "out.gguf", name)
        row(f"FP8 → {name}", ours, converted + quantized, GOALS[name], bench.same("out.gguf"))
        if name == "Q4_K_M":
            ours = bench.ours("quantize", bench.bf16, "out.gguf", name)
            row(f"BF16 GGUF → {name}", ours, quantized, "≥ 5×", bench.same("out.gguf"))


def together(bench: Bench, types: tuple[str, ...]) -> None:
    """Print what several types from one reading cost."""
    single = sum(bench.ours("convert", bench.checkpoint, "out.gguf", name).seconds for name in types)
    seconds = bench.ours("convert", bench.checkpoint, "out-{type}.gguf", *types).seconds
    share = f"{seconds / single:.2f} (≤ 0.75)"
    click.echo(f"\n{', '.join(types)} at once: {seconds:.1f} s, one after the other {single:.1f} s: {share}")


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--converter", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--quantizer", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--runs", default=3, show_default=True)
@click.option("--types", default=",".join(GOALS), show_default=True)
def main(directory: Path, converter: Path, quantizer: Path, threads: int, runs: int, types: str) -> None:
    """Measure and print a Markdown table."""
    directory.mkdir(parents=True, exist_ok=True)
    bench = Bench(directory, converter, quantizer, threads, runs)
    try:
        rows(bench, tuple(types.split(",")))
        for group in TOGETHER:
            together(bench, group)
    finally:
        for path in (bench.bf16, directory / "peer.gguf", *directory.glob("out*.gguf")):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
