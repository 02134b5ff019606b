"""What `gguf-mla convert` does: open the checkpoint, plan, write."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from convert.calibrate import MATRIX, Calibration, calibrated
from convert.plan import layers_of, plan_conversion
from convert.stated import Stated
from gguf_mla.cli import resolve
from gguf_mla.cli.launch import launch
from gguf_mla.cli.places import new_directories, place
from gguf_mla.cli.table import table
from gguf_mla.codec.device import open_device
from gguf_mla.errors import InputError
from gguf_mla.families import families, prediction
from gguf_mla.files.readable import any_path
from gguf_mla.plan.scales import scale_sources
from gguf_mla.sources import hub_cache
from gguf_mla.sources.checkpoint import open_partial
from gguf_mla.stream.run import Job

if TYPE_CHECKING:
    from convert.command import ConvertOptions
    from gguf_mla.cli.options import ReadingOptions, RunOptions, TypeOptions
    from gguf_mla.files.readable import AnyPath

VOCABULARY = "vocab"  # in the place of a type, as llama.cpp names such files


def convert(
    checkpoint: AnyPath,
    out: str | None,
    wanted: ConvertOptions,
    reading: ReadingOptions,
    types: TypeOptions,
    options: RunOptions,
) -> None:
    """Write the GGUF files of a checkpoint, one per type, or show their plans."""
    open_device(options.device)  # one that cannot be used is the first thing to say
    out, mtp = _one_of(out, wanted.outfile), _mtp(wanted.mtp, no_mtp=wanted.no_mtp)
    stated = Stated.read(wanted.model_name, wanted.metadata, wanted.override_kv)
    source = open_partial(checkpoint, reading.choices)
    name = hub_cache.model_name(source.folder.path)
    name = f"mtp-{name}" if mtp == prediction.ONLY else name  # as llama.cpp calls the file of a draft
    if wanted.calibrate:
        _, _, layers = layers_of(source, light=wanted.light, mtp=mtp)
        how = Calibration(checkpoint, wanted.calibrate, reading, predicting=layers.predicting > 0)
        types = calibrated(how, place(out, name, MATRIX), types, options)
    imatrix = resolve.importance(types)
    plans = plan_conversion(
        source,
        (*wanted.type_names, *types.budgets) or ("auto",),
        wanted.pre,
        resolve.overrides(types),
        imatrix,
        resolve.measure(source.tensors, imatrix, options),
        light=wanted.light,
        mtp=mtp,
        stated=stated,
        pad_vocabulary=wanted.pad_vocab,
        vocabulary_only=wanted.vocab_only,
    )
    outputs = [
        (plan, resolve.files(plan, place(out, name, VOCABULARY if wanted.vocab_only else goal.name), options))
        for plan, goal in plans
    ]
    inputs = (*(any_path(file.path) for file in source.files), *types.imatrix_files)
    others = (*(any_path(source.folder.path / name) for name in source.folder.names()), *types.files, *stated.files)
    tensors = {**source.tensors, **scale_sources([job for plan, _ in plans for job in plan.tensors], source.tensors)}
    directories = new_directories(out, (output[0].path for _, output in outputs))
    launch(Job(outputs, tensors, inputs, imatrix, others, source.remarks, directories=directories), options)


def print_supported() -> None:
    """List the classes that config.json may name, with the GGUF architecture of each."""
    rows = [(name, family.architecture) for family in families() for name in sorted(family.classes)]
    click.echo(table(("config.json's architectures", "GGUF architecture"), rows))


def _mtp(wish: str | None, *, no_mtp: bool) -> str | None:
    if no_mtp and wish not in (None, prediction.DROP):
        raise InputError("--no-mtp is --mtp drop", expected="one of them", found=f"--mtp {wish}")
    return prediction.DROP if no_mtp else wish


def _one_of(out: str | None, outfile: str | None) -> str | None:
    if out is not None and outfile is not None:
        raise InputError("the output is named twice", expected=out, found=outfile, remedy="Give OUT or --outfile")
    return outfile if out is None else out
