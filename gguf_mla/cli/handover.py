"""A command that is called for its plan alone: the job that it would run goes to whoever has called it."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gguf_mla.cli.main import Command
    from gguf_mla.cli.options import RunOptions
    from gguf_mla.stream.run import Job

_KEY, _MEASURED = "gguf_mla.handover", "gguf_mla.measured"
SPOKEN = ("as_json", "quiet", "timings", "dry_run")  # options about what a command says, and not about what it writes


class Handover:
    """What a command has handed over.

    taken  the job that it would have run, and the options of the run
    known  the errors of types that are to be taken for measured, tensor by tensor; None where they have to be measured
    """

    def __init__(self, measured: Sequence[Mapping[str, float]] = ()) -> None:
        self.taken: tuple[Job, RunOptions] | None = None
        self.known = iter(measured) if measured else None


@contextmanager
def received(ctx: click.Context, handover: Handover) -> Iterator[None]:
    """Have what a command would run in this context handed over, inside."""
    ctx.meta[_KEY] = handover
    try:
        yield
    finally:
        ctx.meta[_KEY] = None


def current() -> Handover | None:
    """Return who takes what the command that is running would run; None where it runs it itself."""
    ctx = click.get_current_context(silent=True)
    return None if ctx is None else ctx.meta.get(_KEY)


def taken(job: Job, options: RunOptions) -> bool:
    """Hand a job over; False if nobody takes it."""
    if (handover := current()) is None:
        return False
    handover.taken = job, options
    return True


def errors_measured() -> list[dict[str, float]]:
    """Return the errors of types that the command which is running has measured by now."""
    ctx = click.get_current_context(silent=True)
    found: list[dict[str, float]] = [] if ctx is None else ctx.meta.setdefault(_MEASURED, [])
    return found


def measured(
    measure: Callable[..., Iterator[Mapping[str, float]]],
) -> Callable[..., Iterator[Mapping[str, float]]]:
    """Return what measures errors as `measure` does, unless they are known, and remembers them for a plan."""

    def known_or_measured(tensors: Sequence[Any], types: Sequence[Any]) -> Iterator[Mapping[str, float]]:
        handover = current()
        if handover is not None and handover.known is not None:
            yield from itertools.islice(handover.known, len(tensors))
            return
        for errors in measure(tensors, types):
            errors_measured().append(dict(errors))
            yield errors

    return known_or_measured


def options_of(command: Command, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a command was told, as JSON-ready data: by parameter, without those that say nothing new."""
    found = {param.name: _data(values[param.name]) for param in command.params if param.name in values}
    return {name: value for name, value in found.items() if name not in SPOKEN and value not in (None, False, [])}


def words_of(command: Command, options: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line that says what `options_of` has returned."""
    flags: list[str] = []
    words: list[str] = []
    for param in command.params:
        value = options.get(param.name or "")
        items = value if isinstance(value, list) else [] if value is None else [value]
        if isinstance(param, click.Option) and param.is_flag:
            flags += param.opts[:1] if value else []
        elif isinstance(param, click.Option):
            flags += [f"{param.opts[0]}={item}" for item in items]
        else:
            words += map(str, items)
    return [*flags, "--", *words]


def values_of(command: Command, options: Mapping[str, Any], root: click.Command) -> dict[str, Any]:
    """Return the value of every parameter of a command that was told what `options_of` has returned."""
    with (
        click.Context(root, info_name="gguf-mla") as parent,
        command.make_context(command.name, words_of(command, options), parent=parent) as context,
    ):
        return context.params


def _data(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_data(item) for item in value]
    return value if isinstance(value, bool | int | float) or value is None else str(value)
