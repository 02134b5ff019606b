"""The one shape of everything that `--json` prints: docs/json.md lists the fields, gguf_mla/data/json.schema.json too.

What all commands have is here, what a command adds is its own: `answer(models=...)`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from gguf_mla.cli import speech
from gguf_mla.cli.printing import as_json
from gguf_mla.errors import GgufMlaError
from gguf_mla.files.readable import Elsewhere
from gguf_mla.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gguf_mla.files.readable import AnyPath

SCHEMA = 1  # raised when a field goes or comes to mean something else


def answer(
    *,
    inputs: Iterable[AnyPath] = (),
    outputs: Iterable[Mapping[str, Any]] = (),
    stages: Mapping[str, float] | None = None,
    warnings: Iterable[str] = (),
    errors: Iterable[BaseException] = (),
    status: int | None = None,
    **content: Any,
) -> None:
    """Print the one JSON document of a command; `status` is by default that of the last error, 0 without any.

    inputs   what was read
    outputs  what was or would be written, each as `output`
    stages   seconds by stage of the command, in their order; those before the first are called "planning"
    content  what this command alone says
    """
    told = [error(failure) for failure in errors]
    common = {
        "schema": SCHEMA,
        "version": __version__,
        "command": speech.current().command,
        "status": (told[-1]["status"] if told else 0) if status is None else status,
        "inputs": [_input(path) for path in inputs],
        "outputs": list(outputs),
        "elapsed": round(time.monotonic() - speech.current().begin, 3),
        "stages": {name: round(seconds, 3) for name, seconds in (stages or {}).items()},
        "warnings": list(warnings),
        "errors": told,
    }
    speech.answered()
    if (hearer := speech.current().hearer) is not None:
        hearer.document = common | content
    else:
        click.echo(as_json(common | content))


def error(failure: BaseException) -> dict[str, Any]:
    """Return an error as data: its sentence, and the parts that it is made of."""
    parts = {name: getattr(failure, name, None) for name in ("what", "file", "tensor", "expected", "found", "remedy")}
    said = {name: None if part is None else str(part) for name, part in parts.items()}
    status = failure.status if isinstance(failure, GgufMlaError) else 3
    return {"sentence": str(failure) or type(failure).__name__, "status": status, **said}


def _input(path: AnyPath) -> dict[str, Any]:
    try:
        if isinstance(path, Elsewhere):
            nbytes = None if path.is_dir() else path.opened().size
        else:
            nbytes = path.stat().st_size if path.is_file() else None
    except (OSError, GgufMlaError):
        nbytes = None
    return {"path": str(path), "bytes": nbytes}
