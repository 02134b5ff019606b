"""What `gguf-mla quantize`, `split`, `merge`, `upgrade` and `downgrade` do: open the file, plan, write."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_mla.cli import resolve
from gguf_mla.cli.launch import launch
from gguf_mla.codec.device import open_device
from gguf_mla.container.splits import open_gguf_parts
from gguf_mla.errors import InputError
from gguf_mla.plan.downgrade import downgraded
from gguf_mla.plan.draft import as_stored
from gguf_mla.plan.upgrade import upgraded
from gguf_mla.recipes import target
from gguf_mla.sources.gguf import sources
from gguf_mla.stream.run import Job
from quantize.legacy_imatrix import mla_imatrix
from quantize.plan import plan_copy, plan_quantization

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf_mla.cli.options import RunOptions, TypeOptions
    from gguf_mla.container.reader import GgufFile
    from gguf_mla.container.splits import GgufParts
    from gguf_mla.files.readable import Place
    from gguf_mla.plan.draft import Content
    from gguf_mla.recipes import Budget, FileType
    from quantize.legacy_imatrix import MlaImatrix


def quantize(
    source: Place,
    out_and_types: tuple[str, ...],
    allow_requantize: bool,
    keep_split: bool,
    to_mla: bool,
    settings: tuple[str, ...],
    types: TypeOptions,
    options: RunOptions,
) -> None:
    """Write a file with other types, one output per type, or show the plans."""
    open_device(options.device)  # one that cannot be used is the first thing to say
    out, targets = _out_and_targets((*out_and_types, *types.budgets))
    model = open_gguf_parts(source)
    content = upgraded(model) if to_mla else as_stored(model)
    imatrix, tensors = resolve.importance(types), sources(model)
    measure, overrides = resolve.measure(tensors, imatrix, options), resolve.overrides(types)
    plans = plan_quantization(
        content, targets, overrides, imatrix, measure, allow_requantize=allow_requantize, settings=settings
    )
    groups = _groups(model, content) if keep_split else None
    name = source.name.removesuffix(".gguf")
    outputs = [
        (plan, resolve.files(plan, resolve.destination(out, name, file_type.name), options, groups))
        for plan, file_type in plans
    ]
    inputs = (*(file.path for file in model.files), *types.imatrix_files)
    launch(Job(outputs, tensors, inputs, imatrix, types.files), options)


def split(source: Place, out: Path, options: RunOptions) -> None:
    """Write a file in parts."""
    open_device(options.device)
    if options.split_max_size is None and options.split_max_tensors is None:
        raise InputError("no split size is given", remedy="Give --split-max-size or --split-max-tensors")
    _rewrite(source, as_stored, out, options)


def merge(source: Place, out: Path, options: RunOptions) -> None:
    """Write the parts of a model as one file."""
    _rewrite(source, as_stored, out, options)


def upgrade(
    source: Place, out: Path, k_b_type: str | None, keep_split: bool, imatrix: Path | None, options: RunOptions
) -> None:
    """Write a legacy file in the MLA layout, and its importance matrix for that layout."""
    open_device(options.device)
    matrix = mla_imatrix(imatrix, source, out) if imatrix else None
    _rewrite(source, upgraded, out, options, k_b_type, keep_split=keep_split, matrix=matrix)
    if matrix and options.dry_run and not options.as_json:
        click.echo(f"output: {matrix.path}, the importance of {len(matrix)} tensors")


def downgrade(source: Place, out: Path, kv_b_type: str | None, keep_split: bool, options: RunOptions) -> None:
    """Write an MLA file in the legacy layout."""
    _rewrite(source, downgraded, out, options, kv_b_type, keep_split=keep_split)


def _out_and_targets(words: tuple[str, ...]) -> tuple[Path | None, list[FileType | Budget]]:
    """Tell the output from the types: the first word is OUT unless all words are types."""
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
    """Return which tensors come from which part; the first part of a split model may have none, only metadata."""
    part_of = {name: number for number, file in enumerate(model.files) for name in file.tensors}
    counts = Counter(part_of[tensor.parts[0].source] for tensor in content.tensors)
    ends = list(itertools.accumulate(counts[number] for number in range(len(model.files))))
    return [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def _rewrite(
    source: Place,
    content_of: Callable[[GgufFile], Content],
    out: Path,
    options: RunOptions,
    new_type: str | None = None,
    *,
    keep_split: bool = False,
    matrix: MlaImatrix | None = None,
) -> None:
    """Write what `content_of` makes of a file, with the types it has; `new_type` for what is encoded anew."""
    open_device(options.device)
    model = open_gguf_parts(source)
    content = content_of(model)
    plan = plan_copy(content, new_type and new_type.upper())
    groups = _groups(model, content) if keep_split else None
    inputs = [file.path for file in model.files]
    job = Job([(plan, resolve.files(plan, out, options, groups))], sources(model), inputs)
    if matrix:
        job = replace(job, inputs=(*inputs, *matrix.files), extras=[matrix.extra()])
    launch(job, options)
