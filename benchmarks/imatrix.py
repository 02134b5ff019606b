"""What `gguf-mla imatrix` takes: its memory by model and text, and its time beside llama-imatrix.

usage: python benchmarks/imatrix.py memory DIRECTORY
       python benchmarks/imatrix.py speed DIRECTORY [--peer LLAMA_IMATRIX --peer-chunks N]

DIRECTORY gets synthetic V3-like checkpoints (5 GB for `memory`, 5 GB for `speed`), which are kept for the next run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from gguf_mla.bench.calibration import met, sgemm
from gguf_mla.files import platform
from gguf_mla.synthetic import checkpoints, shapes
from gguf_mla.text.tokens import SAMPLE
from tests.support.command import Measured, command, environment, measure

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTEXT, MIB = 512, 1 << 20
# Four heads instead of 128, and two experts for a token: 64k tokens through 4 G parameters take minutes on two cores.
_THIN: dict[str, Any] = shapes.SHAPES["deepseek-v3"] | {
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 256, "num_experts_per_tok": 2,
    "topk_group": 2, "intermediate_size": 2048, "first_k_dense_replace": 1, "num_hidden_layers": 6,
    "num_nextn_predict_layers": 0, "vocab_size": 16384,
}  # fmt: skip
SIZES = {
    "1 GB": _THIN | {"hidden_size": 512, "moe_intermediate_size": 512},
    "4 GB": _THIN | {"hidden_size": 1024, "moe_intermediate_size": 1024},
}
LENGTHS = (8192, 65536)
TIMED: dict[str, Any] = shapes.SHAPES["deepseek-v3"] | {
    "hidden_size": 1024, "intermediate_size": 4096, "moe_intermediate_size": 768, "n_routed_experts": 64,
    "num_experts_per_tok": 8, "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": 768,
    "num_hidden_layers": 9, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "vocab_size": 2048,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration whose weights are stored as BF16."""
    return {key: value for key, value in config.items() if key != "quantization_config"}


def tokens(path: Path, count: int, vocabulary: int) -> Path:
    """Write so many random ids."""
    np.save(path, np.random.default_rng(0).integers(5, vocabulary, count))
    return path


def checkpoint(path: Path, config: Mapping[str, Any], fill: Any) -> Path:
    """Return a checkpoint, made if it is not there."""
    if not path.exists():
        checkpoints.write(path, config, fill, shard_bytes=1_000_000_000)
    return path


def warmed(path: Path) -> int:
    """Read a file, or the files of a directory, so that the page cache has them; return their bytes."""
    total = 0
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        with file.open("rb") as stream:
            while piece := stream.read(16 * MIB):
                total += len(piece)
    return total


def timed(line: list[str], report: Path) -> tuple[Measured, float]:
    """Run a process and return it with its seconds."""
    begin = time.monotonic()
    found = measure(line, report)
    assert found.status == 0, found.output
    return found, time.monotonic() - begin


def last_json(output: str) -> Any:
    """Return the document in what a command has printed."""
    return json.loads(next(line for line in output.splitlines() if line.startswith("{")))


@click.group()
def main() -> None:
    """Measure and print."""


DIRECTORY = click.argument("directory", type=click.Path(path_type=Path))
THREADS = click.option("--threads", default=platform.cores(), show_default=True)


@main.command()
@DIRECTORY
@THREADS
def memory(directory: Path, threads: int) -> None:
    """Print the peak memory of two models over two texts."""
    directory.mkdir(parents=True, exist_ok=True)
    click.echo("| model | bytes | tokens | seconds | peak memory |\n|---|---:|---:|---:|---:|")
    for name, config in SIZES.items():
        model = checkpoint(directory / name.replace(" ", "-"), config, checkpoints.random_weights())
        for length in LENGTHS:
            text = tokens(directory / "tokens.npy", length, config["vocab_size"])
            out = directory / "out.gguf"
            line = command("imatrix", model, out, "--tokens", text, "--threads", threads, "--overwrite", "--quiet")
            ran, seconds = timed(line, directory / "report.json")
            out.unlink()
            click.echo(f"| {name} | {warmed(model):,} | {length:,} | {seconds:.0f} | {ran.peak / MIB:.0f} MiB |")


@main.command()
@DIRECTORY
@THREADS
@click.option("--chunks", default=32, show_default=True)
@click.option("--peer", type=click.Path(exists=True, path_type=Path), help="llama-imatrix")
@click.option("--peer-chunks", default=8, show_default=True)
def speed(directory: Path, threads: int, chunks: int, peer: Path | None, peer_chunks: int) -> None:
    """Print seconds of whole processes over the same BF16 file, and the arithmetic rates."""
    directory.mkdir(parents=True, exist_ok=True)
    config = plain(TIMED)
    model, text = directory / "timed.gguf", directory / "timed.txt"
    if not model.exists():
        source = checkpoint(directory / "timed", config, checkpoints.random_weights())
        subprocess.run(command("convert", source, model, "--type", "BF16", "--quiet"), check=True, env=environment())
    if not text.exists():
        text.write_text(_words(20 * CONTEXT * chunks), "utf-8")
    out, report, size = directory / "out.gguf", directory / "report.json", warmed(model)
    line = command("imatrix", model, out, "--text", text, "--chunks", chunks, "--threads", threads, "--json")
    ours, seconds = timed([*line, "--overwrite"], report)
    document, (every, of_experts) = last_json(ours.output), met(config)
    count, rate = chunks * CONTEXT, sgemm(config["hidden_size"], threads)
    experts = 2 * of_experts * count / document["stages"]["experts"]
    click.echo(f"{shapes.parameters(config):,} parameters, {size:,} bytes, {threads} threads")
    click.echo(f"stages {document['stages']}")
    overall = 2 * every * count / seconds / 1e9
    click.echo(f"ours, {chunks} chunks: {seconds:.1f} s, {ours.peak / MIB:.0f} MiB; {overall:.0f} GFLOP/s")
    click.echo(f"products of experts: {experts / 1e9:.0f} GFLOP/s of {rate / 1e9:.0f} of sgemm: {experts / rate:.0%}")
    if peer is not None:
        line = [str(peer), "-m", str(model), "-f", str(text), "-o", str(directory / "peer.gguf"), "-t", str(threads)]
        theirs, spent = timed([*line, "--chunks", str(peer_chunks), "-c", str(CONTEXT)], report)
        scaled = spent * chunks / peer_chunks
        click.echo(f"llama-imatrix, {peer_chunks} chunks: {spent:.1f} s, {theirs.peak / MIB:.0f} MiB")
        click.echo(f"{scaled / seconds:.1f} times as long for {chunks} chunks, in proportion")


def _words(count: int) -> str:
    """Return at least so many letters of the bundled sample, over and over."""
    sample = SAMPLE.read_text("utf-8")
    return sample * (count // len(sample) + 1)


if __name__ == "__main__":
    main()
