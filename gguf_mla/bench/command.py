"""`gguf-mla bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_mla.cli.launch import device_option
from gguf_mla.cli.main import Installed

if TYPE_CHECKING:
    from collections.abc import Callable


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that both subcommands of tensor types take."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table."),
        click.option("--seconds", default=0.3, show_default=True, help="How long to measure each line."),
        click.option("--rows", default=256, show_default=True, help="Rows of 2048 values to work on."),
        click.option(
            "--against",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A libggml-base.so to compare speed and bytes with.",
        ),
        click.option("--types", "names", metavar="A,B,…", help="Which types; default: all."),
        device_option,
    ):
        command = option(command)
    return command


_directory = click.option(
    "--dir",
    "parent",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Where to work, in a temporary directory.  [default: here]",
)


@click.group(cls=Installed, group="gguf_mla.bench")
def bench() -> None:
    """Measure this machine's speed, and compare with your own ggml."""


@bench.command()
@_options
def quantize(names: str | None, against: Path | None, rows: int, seconds: float, as_json: bool, device: str) -> None:
    """MB of float32 per second and thread that are encoded, per type."""
    from gguf_mla.bench import types  # noqa: PLC0415 - `--help` must not pay for numpy
    from gguf_mla.codec.device import open_device  # noqa: PLC0415

    opened, ggml = open_device(device), types.Ggml(against) if against else None
    results = types.quantize_results(types.wanted_types(names), rows, seconds, ggml, opened)
    types.report(results, ggml is not None, as_json)


@bench.command()
@_options
def dequantize(names: str | None, against: Path | None, rows: int, seconds: float, as_json: bool, device: str) -> None:
    """MB of float32 per second and thread that come out of decoding, per type."""
    from gguf_mla.bench import types  # noqa: PLC0415 - `--help` must not pay for numpy
    from gguf_mla.codec.device import open_device  # noqa: PLC0415

    opened, ggml = open_device(device), types.Ggml(against) if against else None
    results = types.dequantize_results(types.wanted_types(names), rows, seconds, ggml, opened)
    types.report(results, ggml is not None, as_json)


@bench.command()
@click.option("--device", default="cuda", show_default=True, metavar="NAME", help="cuda or cuda:N.")
@click.option("--types", "names", metavar="A,B,…", help="Which types; default: all.")
@click.option("--rows", default=1 << 16, show_default=True, help="Rows of 2048 values to work on.")
@click.option("--seconds", default=0.5, show_default=True, help="How long to measure each line.")
@click.option("--fraction", default="1/256", show_default=True, help="How much of DeepSeek-V3 to quantize; 0: nothing.")
@_directory
@click.option(
    "--out",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Write the results into this directory, as gpu-NAME.md.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def gpu(
    device: str,
    names: str | None,
    rows: int,
    seconds: float,
    fraction: str,
    parent: Path,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure a CUDA device with every type, next to what its memory, its bus and the disk allow."""
    from gguf_mla.bench import gpu as measured  # noqa: PLC0415 - `--help` must not pay for numba

    measured.run(device, names, rows, seconds, fraction, parent, out, as_json=as_json)


@bench.command()
@click.option("--shape", default="deepseek-v3", show_default=True, help="Which model.")
@click.option("--fraction", default="1/64", show_default=True, help="How much of it to convert for real.")
@click.option("--type", "names", multiple=True, default=("BF16", "Q4_K_M"), show_default=True, help="May be repeated.")
@click.option("--threads", type=click.IntRange(min=1), help="Worker threads  [default: all cores]")
@device_option
@_directory
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def convert(
    shape: str, fraction: str, names: tuple[str, ...], threads: int | None, device: str, parent: Path, as_json: bool
) -> None:
    """Plan all of a large model, convert a fraction of it, and say what the whole would take."""
    from gguf_mla.bench import rehearsal  # noqa: PLC0415 - `--help` must not pay for numpy

    rehearsal.run(shape, rehearsal.parse_fraction(fraction), names, threads, parent, device, as_json=as_json)
