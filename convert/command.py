"""`gguf-mla convert`."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_mla.cli.launch import RunOptions, run_options
from gguf_mla.cli.type_options import TypeOptions, type_options


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option(
    "--type",
    "type_names",
    multiple=True,
    metavar="TYPE",
    help="Q4_K_M, BF16, MLA-Q4_K_M, 3.5bpw, 200G, ...; auto, the default, keeps what the checkpoint has (FP8 as BF16, "
    "INT4 as Q4_0). Repeat it for several files.",
)
@click.option("--pre", metavar="NAME", help="The pre-tokenizer's name in llama.cpp, where it is not recognised.")
@click.option(
    "--light", is_flag=True, help="A model with sparse attention as a plain deepseek2 file, which attends densely."
)
@click.option("--no-mtp", is_flag=True, help="Leave out multi-token prediction, which V3.2 and GLM keep.")
@type_options
@run_options
def convert(
    checkpoint: Path,
    out: Path | None,
    type_names: tuple[str, ...],
    pre: str | None,
    light: bool,  # click passes options by name
    no_mtp: bool,
    types: TypeOptions,
    options: RunOptions,
) -> None:
    """Convert the Hugging Face checkpoint in directory CHECKPOINT into the GGUF file OUT.

    OUT may be a directory or hold {type}; without it the file is NAME-TYPE.gguf in the current directory. It appears
    under its name only when it is complete. Several types are written from one reading.
    """
    from convert.plan import plan_conversion  # noqa: PLC0415 - `--help` must not pay for numpy
    from gguf_mla.cli.launch import Job, destination, launch  # noqa: PLC0415
    from gguf_mla.sources.checkpoint import open_checkpoint  # noqa: PLC0415

    source = open_checkpoint(checkpoint)
    imatrix = types.imatrix()
    names = (*type_names, *types.budgets) or ("auto",)
    measure = options.measure(source.tensors, imatrix)
    plans = plan_conversion(
        source, names, pre, types.overrides, imatrix, measure, light=light, keep_prediction=not no_mtp
    )
    name = Path(source.folder.path).resolve().name
    outputs = [(plan, options.files(plan, destination(out, name, target.name))) for plan, target in plans]
    inputs = (*(Path(file.name) for file in source.files), *types.imatrix_files)
    others = tuple(Path(source.folder.path, name) for name in source.folder.names())
    launch(Job(outputs, source.tensors, inputs, imatrix, others, source.remarks), options)
