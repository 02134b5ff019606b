"""Whole jobs as functions: what the commands do, with a callback for progress, and a dictionary as the result.

Each takes the options of its command as keywords, `target_bpw=3.5` for --target-bpw 3.5, a list for what may be
repeated, True for a flag. It returns what the command prints with --json (docs/json.md), and raises what the command
would explain: InputError, MachineError. Warnings are in the result; nothing is printed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from gguf_mla.cli import speech
from gguf_mla.cli.failures import Failure, explained
from gguf_mla.cli.main import main
from gguf_mla.errors import GgufMlaError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Document = dict[str, Any]  # docs/json.md
Progress = Callable[[str, float, float], object]  # called with the stage, and how much of how much is done
StrPath = str | os.PathLike[str]


def convert(
    checkpoint: StrPath,
    out: StrPath | None = None,
    *,
    type: str | Sequence[str] = "auto",  # noqa: A002 - the option's name
    progress: Progress | None = None,
    **options: Any,
) -> Document:
    """Convert a checkpoint into one GGUF file, or one for each type; `gguf-mla convert --help` lists the options."""
    return run("convert", checkpoint, *_given(out), progress=progress, type=type, **options)


def quantize_file(
    source: StrPath,
    out: StrPath,
    type: str | Sequence[str],  # noqa: A002 - as above
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Document:
    """Write a GGUF file in another type, or in several."""
    types = [type] if isinstance(type, str) else list(type)
    return run("quantize", source, out, *types, progress=progress, **options)


def upgrade(legacy: StrPath, out: StrPath, *, progress: Progress | None = None, **options: Any) -> Document:
    """Write a legacy file in the MLA layout."""
    return run("upgrade", legacy, out, progress=progress, **options)


def downgrade(mla: StrPath, out: StrPath, *, progress: Progress | None = None, **options: Any) -> Document:
    """Write an MLA file in the legacy layout."""
    return run("downgrade", mla, out, progress=progress, **options)


def verify(reference: StrPath, candidate: StrPath, *, progress: Progress | None = None, **options: Any) -> Document:
    """Prove that a file computes what a checkpoint or another file does; the result's `right` and `grade` say it."""
    return run("verify", reference, candidate, progress=progress, **options)


def run(name: str, /, *words: StrPath, progress: Progress | None = None, **options: Any) -> Document:
    """Do what a command does, and return its document; InputError for an option that it does not have."""
    root = click.Context(main, info_name="gguf-mla")
    hearer = speech.Hearer(progress)
    speech.heard_by(root, hearer)
    command = main.get_command(root, name)
    if command is None:
        raise InputError("there is no such command", expected=", ".join(main.list_commands(root)), found=name)
    line = [*_options(options), "--json", "--", *(os.fspath(word) for word in words)]
    try:
        with root, command.make_context(name, line, parent=root) as context:
            command.invoke(context)
    except click.exceptions.Exit:  # a difference was found: the document says so
        pass
    except (click.ClickException, KeyboardInterrupt) as error:
        raise _raised(explained(error), error) from None
    return hearer.document


def _given(out: StrPath | None) -> tuple[StrPath, ...]:
    return () if out is None else (out,)


def _options(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield keywords as the words of a command line."""
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is None or value is False:
            continue
        if value is True:
            yield flag
            continue
        for item in value if isinstance(value, list | tuple) else [value]:
            yield f"{flag}={os.fspath(item) if isinstance(item, os.PathLike) else item}"


def _raised(end: click.ClickException | click.exceptions.Exit, error: BaseException) -> BaseException:
    """Return what a caller of the library gets for the end of a command."""
    if isinstance(error, KeyboardInterrupt) or not isinstance(end, Failure):
        return error
    if end.status == 130:  # launch has explained an interrupt
        return KeyboardInterrupt(end.message)
    return InputError(end.error.what, remedy=end.error.remedy) if type(end.error) is GgufMlaError else end.error
