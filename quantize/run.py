"""What `gguf-mla quantize`, `split`, `merge`, `upgrade` and `downgrade` do: open the file, plan, write."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_mla.cli import resolve
from gguf_mla.cli.launch import launch
from gguf_mla.cli.numbers import THREADS
from gguf_mla.cli.places import new_directories, place
from gguf_mla.codec.device import open_device
from gguf_mla.container import splits
from gguf_mla.container.splits import open_gguf_parts
from gguf_mla.errors import InputError
from gguf_mla.files.readable import here
from gguf_mla.plan.downgrade import downgraded
from gguf_mla.plan.draft import as_stored
from gguf_mla.plan.upgrade import upgraded
from gguf_mla.recipes import COPY, target, without_type
from gguf_mla.sources.gguf import sources
from gguf_mla.stream.run import Job
from quantize.out_imatrix import out_imatrix
from quantize.plan import plan_copy, plan_quantization

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf_mla.cli.options import RunOptions, TypeOptions
    from gguf_mla.container.reader import GgufFile
    from gguf_mla.container.splits import GgufParts
    from gguf_mla.files.readable import AnyPath
    from gguf_mla.plan.draft import Content
    from gguf_mla.recipes import Budget, FileType

NOWHERE_HERE = "after --delete-splits and --upload without --keep, the model is on the hub alone."
PART_TENSORS = 128  # in each part where nothing else is said, as gguf-split has it


def quantize(
    source: AnyPath,
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
    words, options = _with_threads(out_and_types, options)
    out, targets = _out_and_targets((*words, *types.budgets))
    model = open_gguf_parts(source)
    content = upgraded(model) if to_mla else as_stored(model)
    imatrix, tensors = resolve.importance(types), sources(model)
    measure, overrides = resolve.measure(tensors, imatrix, options), resolve.overrides(types)
    plans = plan_quantization(
        content, targets, overrides, imatrix, measure, allow_requantize=allow_requantize, settings=settings
    )
    groups = _groups(model, content) if keep_split else None
    name = splits.model_name(source)
    outputs = [
        (plan, resolve.files(plan, place(out, _named(name, file_type), file_type.name), options, groups))
        for plan, file_type in plans
    ]
    inputs = (*(file.path for file in model.files), *types.imatrix_files)
    directories = new_directories(out, (output[0].path for _, output in outputs))
    launch(Job(outputs, tensors, inputs, imatrix, types.files, directories=directories), options)


def split(source: AnyPath, out: str, options: RunOptions) -> None:
    """Write a file in parts."""
    if options.split_max_size is None and options.split_max_tensors is None:
        options = replace(options, split_max_tensors=PART_TENSORS)
    _rewrite(source, as_stored, out, options)


def merge(source: AnyPath, out: str, delete_splits: bool, options: RunOptions) -> None:
    """Write the parts of a model as one file, and delete them then, if that is wanted."""
    _rewrite(source, as_stored, out, options, delete_parts=delete_splits)


def upgrade(
    source: AnyPath, out: str, k_b_type: str | None, keep_split: bool, imatrix: Path | None, options: RunOptions
) -> None:
    """Write a legacy file in the MLA layout, and its importance matrix for that layout."""
    open_device(options.device)
    _rewrite(source, upgraded, out, options, k_b_type, keep_split=keep_split, imatrix=imatrix)


def downgrade(
    source: AnyPath, out: str, kv_b_type: str | None, keep_split: bool, imatrix: Path | None, options: RunOptions
) -> None:
    """Write an MLA file in the legacy layout, and its importance matrix for that layout."""
    _rewrite(source, downgraded, out, options, kv_b_type, keep_split=keep_split, imatrix=imatrix)


def _with_threads(words: tuple[str, ...], options: RunOptions) -> tuple[tuple[str, ...], RunOptions]:
    """Take a number after a type for that of threads, as llama-quantize does, although types have numbers, too."""
    if len(words) < 2 or not re.fullmatch(r"[0-9]{1,4}", words[-1], re.ASCII) or not _is_type(words[-2]):
        return words, options
    threads = int(words[-1])
    if options.threads not in (None, threads) or not 1 <= threads <= THREADS:
        raise InputError(
            "the number after the last type is that of threads",
            expected=options.threads or f"1 to {THREADS}",
            found=threads,
            remedy="Give it once; a type that is meant by its number can be named",
        )
    return words[:-1], replace(options, threads=threads)


def _is_type(word: str) -> bool:
    try:
        return bool(target(word))
    except InputError:
        return False


def _named(name: str, file_type: FileType) -> str:
    """Return what the model of a new type is called; a copy has the types it had."""
    return name if file_type is COPY else without_type(name)


def _out_and_targets(words: tuple[str, ...]) -> tuple[str | None, list[FileType | Budget]]:
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
    return words[0], [target(word) for word in words[1:]]


def _groups(model: GgufParts, content: Content) -> list[slice]:
    """Return which tensors come from which part; the first part of a split model may have none, only metadata."""
    part_of = {name: number for number, file in enumerate(model.files) for name in file.tensors}
    counts = Counter(part_of[tensor.parts[0].source] for tensor in content.tensors)
    ends = list(itertools.accumulate(counts[number] for number in range(len(model.files))))
    return [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def _parts(model: GgufParts, source: AnyPath) -> list[Path]:
    if len(model.files) < 2:
        raise InputError("is whole, so there are no parts to delete", file=model.path, remedy="Omit --delete-splits")
    if not isinstance(source, Path):
        raise InputError("lies on the hub, where nothing is deleted", file=source, remedy="Omit --delete-splits")
    return here(file.path for file in model.files)


def _rewrite(
    source: AnyPath,
    content_of: Callable[[GgufFile], Content],
    out: str,
    options: RunOptions,
    new_type: str | None = None,
    *,
    keep_split: bool = False,
    delete_parts: bool = False,
    imatrix: Path | None = None,
) -> None:
    """Write what `content_of` makes of a file, with the types it has; `new_type` for what is encoded anew.

    `imatrix` is the file's importance matrix: that of the output is written with it.
    """
    open_device(options.device)
    model = open_gguf_parts(source)
    content = content_of(model)
    plan = plan_copy(content, new_type and new_type.upper())
    groups = _groups(model, content) if keep_split else None
    inputs = [file.path for file in model.files]
    path = place(out, splits.model_name(source))
    output = resolve.files(plan, path, options, groups)
    directories = new_directories(out, (output[0].path,))
    consumed = _parts(model, source) if delete_parts else ()
    if consumed and options.upload and not options.keep:
        plan = replace(plan, warnings=(*plan.warnings, NOWHERE_HERE))
    job = Job([(plan, output)], sources(model), inputs, directories=directories, consumed=consumed)
    if imatrix is None:
        launch(job, options)
        return
    matrix = out_imatrix(imatrix, {tensor.name: tensor.shape for tensor in content.tensors}, path)
    launch(replace(job, inputs=(*inputs, *matrix.files), extras=[matrix.extra()]), options)
    if options.dry_run and not options.as_json:
        click.echo(f"output: {matrix.path}, the importance of {len(matrix)} tensors")
