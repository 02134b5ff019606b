"""How a command was asked to speak: what it prints for people or for programs, known before its options are read."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TEXT, JSON = "text", "json"
_KEY, _ANSWERED, _HEARER = "gguf_mla.speech", "gguf_mla.answered", "gguf_mla.hearer"


@dataclass
class Hearer:
    """A caller who gets what a command says: progress by its callback, and at the end the document."""

    progress: Callable[[str, float, float], object] | None = None
    document: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Speech:
    """How a command speaks.

    command  its name, "convert" or "bench quantize"
    as_json  whether standard output is JSON, errors included
    log      "text" or "json": what a line on standard error is
    begin    when the command began, by `time.monotonic`
    hearer   the caller of a library function, who hears everything instead of standard output and error
    """

    command: str = ""
    as_json: bool = False
    log: str = TEXT
    begin: float = field(default_factory=time.monotonic)
    hearer: Hearer | None = None


def note(ctx: click.Context, command: click.Command, words: Sequence[str]) -> None:
    """Note what the words of a command line ask for: even those that are refused are answered so."""
    knows_json = any("--json" in param.opts for param in command.params)
    as_json = knows_json and "--json" in words
    pairs = itertools.pairwise(words)
    log = JSON if f"--log-format={JSON}" in words or ("--log-format", JSON) in pairs else TEXT
    ctx.meta[_KEY] = Speech(ctx.command_path.partition(" ")[2], as_json, log, hearer=ctx.meta.get(_HEARER))


def heard_by(ctx: click.Context, hearer: Hearer) -> None:
    """Have all that commands in this context say heard by a caller alone."""
    ctx.meta[_HEARER] = hearer


def current() -> Speech:
    """Return how the command that is running was asked to speak."""
    ctx = click.get_current_context(silent=True)
    found = None if ctx is None else ctx.meta.get(_KEY)
    return found if isinstance(found, Speech) else Speech()


def answered() -> None:
    """Note that standard output has its JSON."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None:
        ctx.meta[_ANSWERED] = True


def is_unanswered() -> bool:
    """Whether standard output is to be JSON and has none yet."""
    ctx = click.get_current_context(silent=True)
    return ctx is not None and current().as_json and not ctx.meta.get(_ANSWERED)


def option() -> click.Option:
    """Return the option that every command has; `note` reads it."""
    return click.Option(
        ["--log-format"],
        type=click.Choice([TEXT, JSON]),
        default=TEXT,
        show_default=True,
        expose_value=False,
        help="What lines on standard error are: progress, warnings, errors.",
    )
