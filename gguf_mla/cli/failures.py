"""What ends a command: every exception becomes a sentence and a status, and none of them is 1.

Status 1 says that a proof was finished and found a difference; only a command itself ends with it.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
import tempfile
import traceback
from pathlib import Path
from typing import IO, Any

import click

from gguf_mla.cli import speech
from gguf_mla.cli.printing import log
from gguf_mla.cli.streams import ReaderGone
from gguf_mla.errors import GgufMlaError, MachineError
from gguf_mla.quoting import quoted
from gguf_mla.version import __version__

TRACEBACK = "GGUF_MLA_TRACEBACK"  # the environment variable that shows tracebacks
INTERRUPTED = 130  # as shells have it: 128 and the signal's number
READER_GONE = 141
LARGEST = 1 << 18  # characters of a traceback, which may quote what it was about
REMEDIES = {
    errno.EMFILE: "Allow more open files (ulimit -n)",
    errno.ENFILE: "Close other programs, the whole machine has too many files open",
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space, or ask for a larger quota",
    errno.EIO: "Look at the disk, or the network that it is reached by",
    errno.EROFS: "Choose a place that can be written",
    errno.ENOMEM: "Use fewer --threads",
}
REASONS: dict[type[BaseException], str] = {
    RecursionError: "something is nested too deeply",
    OverflowError: "a number is too large to compute with",
    UnicodeError: "a text cannot be encoded",
}


class Failure(click.ClickException):
    """An explained error on its way to the terminal and the exit status."""

    def __init__(self, error: GgufMlaError) -> None:
        super().__init__(str(error))
        self.error, self.status, self.speech = error, error.status, speech.current()

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # a class variable of click's
        """The status that the error asks for."""
        return self.status

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the sentence."""
        if self.speech.log == speech.TEXT or file is not None:
            click.echo(f"gguf-mla: error: {self.message}", err=True, file=file)
        else:
            log("error", self.message, self.speech.log, error=self.message, status=self.exit_code)


class Interrupted(Failure):
    """Ctrl-C: status 130, as shells expect it; what is done, and how to go on."""

    def __init__(
        self, done: str = "nothing was written", remedy: str = "Run the same command again to start over"
    ) -> None:
        super().__init__(GgufMlaError(f"interrupted; {done}", remedy=remedy))
        self.status = INTERRUPTED


# Help where no command is named; before click 8.2 that was not an error.
_HELP: type[click.ClickException] = getattr(click.exceptions, "NoArgsIsHelpError", Failure)


class Quiet(click.exceptions.Exit):
    """An end about which nobody can be told."""


def explained(error: BaseException) -> click.ClickException | click.exceptions.Exit:
    """Return what click is to end with, for any exception at all."""
    if isinstance(error, click.exceptions.Exit | Failure | _HELP):
        return error
    if isinstance(error, click.UsageError):
        return Failure(_misused(error))
    if isinstance(error, ReaderGone) or (isinstance(error, OSError) and error.errno == errno.EPIPE):
        return Quiet(READER_GONE)
    # Before 3.12, an interrupt that came while a class was made is wrapped.
    if isinstance(error, KeyboardInterrupt | click.Abort) or isinstance(error.__cause__, KeyboardInterrupt):
        return Interrupted()
    return Failure(_error(error))


def _misused(error: click.UsageError) -> GgufMlaError:
    """Return a wrong call as a sentence like all others."""
    words = " ".join(error.format_message().split()).removesuffix(".")
    words = re.sub(r"\. Did you mean (.*)\?$", r" (did you mean \1?)", words)
    return GgufMlaError(words, remedy=None if error.ctx is None else f"See {error.ctx.command_path} --help")


def _error(error: BaseException) -> GgufMlaError:
    if isinstance(error, GgufMlaError):
        return error
    if isinstance(error, MemoryError):
        return MachineError("there is not enough memory", remedy="Use fewer --threads")
    if isinstance(error, click.ClickException):
        return GgufMlaError(error.format_message().removesuffix("."))
    if isinstance(error, OSError) and (error.errno in REMEDIES or _path(error)):
        return MachineError((error.strerror or str(error)).lower(), file=_path(error), remedy=_remedy(error))
    return _unexpected(error)


def _path(error: OSError) -> str | None:
    name = error.filename
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else None


def _remedy(error: OSError) -> str | None:
    return REMEDIES.get(error.errno or 0)


def _unexpected(error: BaseException) -> GgufMlaError:
    """Return the sentence of an error that nobody thought of, and write down where it came from."""
    if os.environ.get(TRACEBACK):
        click.echo(_ends("".join(traceback.format_exception(error))), err=True, nl=False)
    reason = next((f" ({text})" for kind, text in REASONS.items() if isinstance(error, kind)), "")
    report = _report(error)
    remedy = f"Please report it with {report}" if report else f"{TRACEBACK}=1 shows where it came from"
    return MachineError(
        f"an unexpected error in gguf-mla{reason}: {type(error).__name__} {_words(error)}", remedy=remedy
    )


def _words(error: BaseException) -> str:
    try:
        return quoted(str(error)).removesuffix(".")
    except Exception as second:  # an exception that cannot say what it is
        return f"({type(second).__name__})"


def _report(error: BaseException) -> Path | None:
    """Write a report into the machine's temporary directory; None where there is none, and never where we work."""
    try:
        directory = Path(tempfile.gettempdir()).resolve()
        if directory == Path.cwd().resolve():  # what Python falls back to
            return None
        descriptor, name = tempfile.mkstemp(".txt", "gguf-mla-error-", directory)
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:  # noqa: PTH123 - a descriptor
            file.write(_content(error))
    except OSError:
        return None
    return Path(name)


def _content(error: BaseException) -> str:
    arguments = " ".join(quoted(repr(argument)) for argument in sys.argv[1:])
    machine = f"gguf-mla {__version__}, Python {platform.python_version()}, {platform.platform()}"
    return f"{machine}\ngguf-mla {arguments}\n\n{_ends(''.join(traceback.format_exception(error)))}"


def _ends(text: str) -> str:
    """Return a text, without its middle where it is long."""
    return text if len(text) <= LARGEST else f"{text[: LARGEST // 2]}\n...\n{text[-LARGEST // 2 :]}"
