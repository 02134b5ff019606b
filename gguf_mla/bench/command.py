"""`gguf-mla bench`."""

from __future__ import annotations

from pathlib import Path

import click
from click import Option

from gguf_mla.cli.main import Command, Installed
from gguf_mla.cli.numbers import COUNT, Fraction, Real, Whole
from gguf_mla.cli.options import DEVICE, THREADS

ROWS, SECONDS = Whole(COUNT), Real(0, 3600)
DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group(cls=Installed, group="gguf_mla.bench")
def bench() -> None:
    """Measure this machine's speed, and compare with your own ggml."""


def _types(run: str, about: str) -> Command:
    """Return a command that measures tensor types: encoding and decoding take the same options."""
    return Command(
        run,
        about,
        Option(["--device"], default="cpu", **DEVICE),
        _names(),
        Option(
            ["--against"],
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A libggml-base.so to compare speed and bytes with.",
        ),
        Option(
            ["--cpu"],
            metavar="NAME",
            help="Measure as another processor would: haswell for one with AVX2 at most, generic with SSE2 only.",
        ),
        Option(["--rows"], type=ROWS, default=256, show_default=True, help="Rows of 2048 values to work on."),
        Option(["--seconds"], type=SECONDS, default=0.3, show_default=True, help="How long to measure each line."),
        Option(["--json", "as_json"], is_flag=True, help="Print JSON instead of a table."),
    )


def _names() -> Option:
    return Option(["--types", "names"], metavar="A,B,…", help="Which types; default: all.")


def _directory() -> Option:
    return Option(
        ["--dir", "parent"],
        type=DIRECTORY,
        default=Path(),
        help="Where to work, in a temporary directory.  [default: here]",
    )


bench.add_command(
    _types("gguf_mla.bench.types:quantize", "MB of float32 per second and thread that are encoded, per type.")
)
bench.add_command(
    _types(
        "gguf_mla.bench.types:dequantize", "MB of float32 per second and thread that come out of decoding, per type."
    )
)
bench.add_command(
    Command(
        "gguf_mla.bench.gpu:run",
        "Measure a CUDA device with every type, next to what its memory, its bus and the disk allow.",
        Option(["--device"], default="cuda", show_default=True, metavar="NAME", help="cuda or cuda:N."),
        _names(),
        Option(["--rows"], type=ROWS, default=1 << 16, show_default=True, help="Rows of 2048 values to work on."),
        Option(["--seconds"], type=SECONDS, default=0.5, show_default=True, help="How long to measure each line."),
        Option(
            ["--fraction"],
            type=Fraction(),
            default="1/256",
            show_default=True,
            help="How much of DeepSeek-V3 to quantize; 0: nothing.",
        ),
        _directory(),
        Option(["--out"], type=DIRECTORY, help="Write the results into this directory, as gpu-NAME.md."),
        Option(["--json", "as_json"], is_flag=True, help="Print JSON instead of tables."),
    ),
    "gpu",
)
bench.add_command(
    Command(
        "gguf_mla.bench.rehearsal:run",
        "Plan all of a large model, convert a fraction of it, and say what the whole would take.",
        Option(["--shape"], default="deepseek-v3", show_default=True, help="Which model."),
        Option(
            ["--fraction"],
            type=Fraction(),
            default="1/64",
            show_default=True,
            help="How much of it to convert for real.",
        ),
        Option(
            ["--type", "names"],
            multiple=True,
            default=("BF16", "Q4_K_M"),
            show_default=True,
            help="May be repeated.",
        ),
        Option(["--threads"], **THREADS),
        Option(["--device"], default="cpu", **DEVICE),
        _directory(),
        Option(["--json", "as_json"], is_flag=True, help="Print JSON instead of tables."),
    ),
    "convert",
)
bench.add_command(
    Command(
        "gguf_mla.bench.calibration:run",
        "Run a fraction of a large model over random tokens, and say what its importance matrix would take.",
        Option(["--shape"], default="deepseek-v3", show_default=True, help="Which model."),
        Option(["--fraction"], type=Fraction(), default="1/64", show_default=True, help="How much of it to run."),
        Option(["--tokens"], type=ROWS, default=4096, show_default=True, help="How many tokens, in chunks of 512."),
        Option(["--threads"], **THREADS),
        Option(["--device"], default="cpu", **DEVICE),
        _directory(),
        Option(["--json", "as_json"], is_flag=True, help="Print JSON instead of tables."),
    ),
    "imatrix",
)
