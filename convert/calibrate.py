"""The importance matrix that a conversion makes for itself, by the command that is there for it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gguf_mla import discovery
from gguf_mla.cli.main import GROUP
from gguf_mla.errors import InputError
from gguf_mla.importance.matrix import read_imatrix
from gguf_mla.text.calibration import dataset

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import click

    from gguf_mla.cli.options import RunOptions, TypeOptions
    from gguf_mla.files.readable import AnyPath

MATRIX = "imatrix"  # in the place of a type in the output's name


def calibrated(
    checkpoint: AnyPath,
    named: Path,
    texts: Sequence[Path],
    how: Iterable[tuple[str, str | bool | None]],
    types: TypeOptions,
    options: RunOptions,
) -> TypeOptions:
    """Run a checkpoint over texts, and return the options of its conversion with the matrix that comes of it.

    named  what an output would be called; the matrix is NAME.imatrix.gguf beside it
    how    options of the checkpoint, by their flags; True for a flag that takes no value

    A matrix that is there already is used, if it was made from texts of these names; InputError for any other file.
    """
    if types.imatrix_files:
        raise InputError("--calibrate makes the matrix that --imatrix gives", remedy="Give one of the two")
    stem = named.name.removesuffix(".gguf").removesuffix(f"-{MATRIX}").removesuffix(f".{MATRIX}")
    path = named.with_name(f"{stem}.{MATRIX}.gguf")
    names = tuple(map(dataset, texts))
    if not path.exists():
        _run(["imatrix", checkpoint, path], [*(("--text", text) for text in texts), *how], options)
    elif read_imatrix([path]).datasets != names:
        what = "is there already, and is not the importance matrix of these texts"
        raise InputError(what, file=path, expected=", ".join(names), remedy="Move it away, or give it with --imatrix")
    return replace(types, imatrix_files=(path,))


def _run(words: Sequence[object], settings: Iterable[tuple[str, object]], options: RunOptions) -> None:
    """Call another command of this program by its name: jobs know nothing else of each other."""
    if options.dry_run:
        raise InputError("--dry-run would have to make the importance matrix first", remedy="Give it with --imatrix")
    name, *arguments = map(str, words)
    there = ((flag, value) for flag, value in settings if value not in (None, False))
    given = [word for flag, value in there for word in ((flag,) if value is True else (flag, str(value)))]
    given += ["--device", options.device]
    given += [] if options.threads is None else ["--threads", str(options.threads)]
    given += [] if options.spool is None else ["--spool", options.spool]
    given += ["--no-resume"] if options.no_resume else []
    given += ["--quiet"] if options.quiet or options.as_json else []
    command: click.Command = next(iter(discovery.plugins(GROUP, name))).load()
    command.main([*arguments, *given], name, standalone_mode=False)
