"""`gguf-mla quantize`, `split`, `merge`, `upgrade` and `downgrade`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_mla.cli.launch import RunOptions, run_options
from gguf_mla.cli.type_options import TypeOptions, type_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf_mla.container.reader import GgufFile
    from gguf_mla.container.splits import GgufParts
    from gguf_mla.plan.draft import Content
    from gguf_mla.recipes import Budget, FileType

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("source", metavar="IN", type=_PATH)
@click.argument("out_and_types", metavar="[OUT] TYPE...", nargs=-1)
@click.option("--allow-requantize", is_flag=True, help="Accept tensors that are quantized already.")
@click.option("--keep-split", is_flag=True, help="Write as many parts as IN has, with the same tensors in each.")
@click.option("--upgrade", "to_mla", is_flag=True, help="IN is a legacy file; write the MLA layout.")
@click.option("--override-kv", "settings", multiple=True, metavar="KEY=TYPE:VALUE", help="Set a metadata value.")
@type_options
@run_options
def quantize(
    source: Path,
    out_and_types: tuple[str, ...],
    allow_requantize: bool,  # click passes options by name
    keep_split: bool,
    to_mla: bool,
    settings: tuple[str, ...],
    types: TypeOptions,
    options: RunOptions,
) -> None:
    """Quantize the GGUF file IN (or the split model whose first part it is) into the file OUT of type TYPE.

    OUT may be a directory or hold {type}; without it the file is NAME-TYPE.gguf in the current directory. Several
    types are written from one reading. COPY changes no tensor.
    """
    from gguf_mla.cli.launch import Job, destination, launch  # noqa: PLC0415
    from gguf_mla.container.splits import open_gguf_parts  # noqa: PLC0415 - `--help` must not pay for numpy
    from gguf_mla.plan.draft import as_stored  # noqa: PLC0415
    from gguf_mla.plan.upgrade import upgraded  # noqa: PLC0415
    from gguf_mla.sources.gguf import sources  # noqa: PLC0415
    from quantize.plan import plan_quantization  # noqa: PLC0415

    out, targets = _out_and_targets((*out_and_types, *types.budgets))
    model = open_gguf_parts(source)
    content = upgraded(model) if to_mla else as_stored(model)
    imatrix, tensors = types.imatrix(), sources(model)
    measure = options.measure(tensors, imatrix)
    plans = plan_quantization(
        content, targets, types.overrides, imatrix, measure, allow_requantize=allow_requantize, settings=settings
    )
    groups = _groups(model, content) if keep_split else None
    name = source.name.removesuffix(".gguf")
    outputs = [(plan, options.files(plan, destination(out, name, file_type.name), groups)) for plan, file_type in plans]
    inputs = (*(file.path for file in model.files), *types.imatrix_files)
    launch(Job(outputs, tensors, inputs, imatrix), options)


def _out_and_targets(words: tuple[str, ...]) -> tuple[Path | None, list[FileType | Budget]]:
    """Tell the output from the types: the first word is OUT unless all words are types."""
    from gguf_mla.errors import InputError  # noqa: PLC0415 - not for `--help`
    from gguf_mla.recipes import target  # noqa: PLC0415

    if not words:
        raise InputError(
            "no type is named", remedy="Name one (Q4_K_M, MLA-IQ4_XS), or a size: --target-bpw, --target-size"
        )
    try:
        return None, [target(word) for word in words]
    except InputError:
        if len(words) == 1:
            raise
    return Path(words[0]), [target(word) for word in words[1:]]


def _groups(model: GgufParts, content: Content) -> list[slice]:
    """Return which tensors come from which part."""
    part_of = {name: number for number, file in enumerate(model.files) for name in file.tensors}
    groups, start = [], 0
    for _, tensors in itertools.groupby(content.tensors, lambda tensor: part_of[tensor.parts[0].source]):
        stop = start + len(list(tensors))
        groups.append(slice(start, stop))
        start = stop
    return groups


@click.command()
@click.argument("source", metavar="IN", type=_PATH)
@click.argument("out", metavar="OUT", type=_PATH)
@run_options
def split(source: Path, out: Path, options: RunOptions) -> None:
    """Split the GGUF file IN into parts OUT-00001-of-0000N.gguf, by --split-max-size or --split-max-tensors."""
    from gguf_mla.errors import InputError  # noqa: PLC0415
    from gguf_mla.plan.draft import as_stored  # noqa: PLC0415 - not for `--help`

    if options.split_max_size is None and options.split_max_tensors is None:
        raise InputError("how to split is not said", remedy="Give --split-max-size or --split-max-tensors")
    _rewrite(source, as_stored, out, options)


@click.command()
@click.argument("source", metavar="IN", type=_PATH)
@click.argument("out", metavar="OUT", type=_PATH)
@run_options
def merge(source: Path, out: Path, options: RunOptions) -> None:
    """Merge the split model whose first part is IN into the one file OUT."""
    from gguf_mla.plan.draft import as_stored  # noqa: PLC0415 - not for `--help`

    _rewrite(source, as_stored, out, options)


@click.command()
@click.argument("source", metavar="LEGACY", type=_PATH)
@click.argument("out", metavar="OUT", type=_PATH)
@click.option("--k-b-type", metavar="TYPE", help="Type of attn_k_b  [default: Q8_0, or attn_kv_b's if it is float]")
@click.option("--keep-split", is_flag=True, help="Write as many parts as LEGACY has.")
@click.option("--imatrix", type=_PATH, metavar="FILE", help="LEGACY's importance matrix; OUT's is written beside OUT.")
@run_options
def upgrade(
    source: Path, out: Path, k_b_type: str | None, keep_split: bool, imatrix: Path | None, options: RunOptions
) -> None:
    """Write the MLA file OUT from the legacy file LEGACY: attn_kv_b becomes attn_k_b and attn_v_b.

    attn_k_b is encoded anew, everything else is copied byte for byte. --imatrix writes OUT's importance matrix as
    NAME.imatrix.gguf, too.
    """
    from gguf_mla.plan.upgrade import upgraded  # noqa: PLC0415 - not for `--help`
    from quantize.legacy_imatrix import beside, mla_imatrix  # noqa: PLC0415

    matrix = mla_imatrix(imatrix, source, beside(out, overwrite=options.overwrite)) if imatrix else None
    _rewrite(source, upgraded, out, options, k_b_type, keep_split=keep_split)
    if matrix and not options.dry_run:
        matrix.write()
    elif matrix and not options.as_json:
        click.echo(f"output: {matrix.path}, the importance of {len(matrix)} tensors")


@click.command()
@click.argument("source", metavar="MLA", type=_PATH)
@click.argument("out", metavar="OUT", type=_PATH)
@click.option("--kv-b-type", metavar="TYPE", help="Type of attn_kv_b  [default: that of attn_v_b]")
@click.option("--keep-split", is_flag=True, help="Write as many parts as MLA has.")
@run_options
def downgrade(source: Path, out: Path, kv_b_type: str | None, keep_split: bool, options: RunOptions) -> None:
    """Write the legacy file OUT from the file MLA, for programs that know only attn_kv_b.

    The key half of attn_kv_b is encoded anew, everything else is copied byte for byte.
    """
    from gguf_mla.plan.downgrade import downgraded  # noqa: PLC0415 - not for `--help`

    _rewrite(source, downgraded, out, options, kv_b_type, keep_split=keep_split)


def _rewrite(
    source: Path,
    content_of: Callable[[GgufFile], Content],
    out: Path,
    options: RunOptions,
    new_type: str | None = None,
    *,
    keep_split: bool = False,
) -> None:
    """Write what `content_of` makes of a file, with the types it has; `new_type` for what is encoded anew."""
    from gguf_mla.cli.launch import Job, launch  # noqa: PLC0415
    from gguf_mla.container.splits import open_gguf_parts  # noqa: PLC0415 - not for `--help`
    from gguf_mla.sources.gguf import sources  # noqa: PLC0415
    from quantize.plan import plan_copy  # noqa: PLC0415

    model = open_gguf_parts(source)
    content = content_of(model)
    plan = plan_copy(content, new_type and new_type.upper())
    groups = _groups(model, content) if keep_split else None
    inputs = [file.path for file in model.files]
    launch(Job([(plan, options.files(plan, out, groups))], sources(model), inputs), options)
