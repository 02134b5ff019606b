"""The importance matrix that a conversion makes for itself, by the command that is there for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gguf_mla import discovery
from gguf_mla.cli.main import GROUP
from gguf_mla.errors import InputError
from gguf_mla.importance.matrix import read_imatrix
from gguf_mla.text.calibration import dataset

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import click

    from gguf_mla.cli.options import ReadingOptions, RunOptions, TypeOptions
    from gguf_mla.files.readable import AnyPath

MATRIX = "imatrix"  # in the place of a type in the output's name


@dataclass(frozen=True)
class Calibration:
    """The run that makes a matrix.

    checkpoint  what is run, read as `reading` says
    texts       over which it is run
    predicting  whether the layers of multi-token prediction are run, too
    """

    checkpoint: AnyPath
    texts: Sequence[Path]
    reading: ReadingOptions
    predicting: bool = False


def calibrated(how: Calibration, named: Path, types: TypeOptions, options: RunOptions) -> TypeOptions:
    """Run a checkpoint over texts, and return the options of its conversion with the matrix that comes of it.

    `named` is what an output would be called; the matrix is NAME.imatrix.gguf beside it. One that is there already is
    used, if it was made from texts of these names, with the layers of multi-token prediction where they are wanted;
    InputError for any other file.
    """
    if types.imatrix_files:
        raise InputError("--calibrate makes the matrix that --imatrix gives", remedy="Give one of the two")
    stem = named.name.removesuffix(".gguf").removesuffix(f"-{MATRIX}").removesuffix(f".{MATRIX}")
    path = named.with_name(f"{stem}.{MATRIX}.gguf")
    if path.exists():
        _check(path, how)
    else:
        _make(path, how, options)
    return replace(types, imatrix_files=(path,))


def _check(path: Path, how: Calibration) -> None:
    """Raise InputError for a matrix that the command would not make: of other texts, or of fewer layers."""
    found, names = read_imatrix([path]), tuple(map(dataset, how.texts))
    remedy = "Move it away, or give it with --imatrix"
    if found.datasets != names:
        what = "is there already, and is not the importance matrix of these texts"
        raise InputError(what, file=path, expected=", ".join(names), remedy=remedy)
    if how.predicting and not found.predictors:
        what = "is there already, and was made without the layers of multi-token prediction, which are wanted now"
        raise InputError(what, file=path, remedy=remedy)


def _make(path: Path, how: Calibration, options: RunOptions) -> None:
    """Call the command that makes a matrix by its name: jobs know nothing else of each other."""
    if options.dry_run:
        raise InputError("--dry-run would have to make the importance matrix first", remedy="Give it with --imatrix")
    command: click.Command = next(iter(discovery.plugins(GROUP, "imatrix"))).load()
    words = [str(how.checkpoint), str(path), *_said(how, options)]
    command.main(words, "imatrix", standalone_mode=False)


def _said(how: Calibration, options: RunOptions) -> Iterator[str]:
    """Yield the options that the making of a matrix shares with a conversion, and the texts."""
    yield from (f"--text={text}" for text in how.texts)
    yield from (f"--set={setting}" for setting in how.reading.settings)
    single = {
        "--weights": how.reading.weights,
        "--prefix": how.reading.prefix,
        "--device": options.device,
        "--threads": options.threads,
        "--spool": options.spool,
    }
    yield from (f"{flag}={value}" for flag, value in single.items() if value is not None)
    flags = {
        "--mtp": how.predicting,
        "--no-resume": options.no_resume,
        "--quiet": options.quiet or options.as_json,
    }
    yield from (flag for flag, given in flags.items() if given)
