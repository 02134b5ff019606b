"""What `gguf-mla convert` does: open the checkpoint, plan, write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convert.plan import plan_conversion
from gguf_mla.cli import resolve
from gguf_mla.cli.launch import launch
from gguf_mla.codec.device import open_device
from gguf_mla.files.readable import place
from gguf_mla.plan.scales import scale_sources
from gguf_mla.sources import hub_cache
from gguf_mla.sources.checkpoint import Choices, open_partial
from gguf_mla.sources.recognise import settings
from gguf_mla.stream.run import Job

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_mla.cli.options import RunOptions, TypeOptions
    from gguf_mla.files.readable import Place


def convert(
    checkpoint: Place,
    out: Path | None,
    type_names: tuple[str, ...],
    pre: str | None,
    light: bool,
    no_mtp: bool,
    pad_vocab: bool,
    weights: str | None,
    prefix: str | None,
    set_keys: tuple[str, ...],
    types: TypeOptions,
    options: RunOptions,
) -> None:
    """Write the GGUF files of a checkpoint, one per type, or show their plans."""
    open_device(options.device)  # one that cannot be used is the first thing to say
    source = open_partial(checkpoint, Choices(weights, prefix, settings.parse(set_keys)))
    imatrix = resolve.importance(types)
    names = (*type_names, *types.budgets) or ("auto",)
    measure = resolve.measure(source.tensors, imatrix, options)
    plans = plan_conversion(
        source,
        names,
        pre,
        resolve.overrides(types),
        imatrix,
        measure,
        light=light,
        keep_prediction=not no_mtp,
        pad_vocabulary=pad_vocab,
    )
    name = hub_cache.model_name(source.folder.path)
    outputs = [(plan, resolve.files(plan, resolve.destination(out, name, goal.name), options)) for plan, goal in plans]
    inputs = (*(place(file.path) for file in source.files), *types.imatrix_files)
    others = (*(place(source.folder.path / name) for name in source.folder.names()), *types.files)
    tensors = {**source.tensors, **scale_sources([job for plan, _ in plans for job in plan.tensors], source.tensors)}
    launch(Job(outputs, tensors, inputs, imatrix, others, source.remarks), options)
