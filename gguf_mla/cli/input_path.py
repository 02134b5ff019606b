"""Where an input lies, on the command line: a path of this machine, or an id of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class InputPath(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5
    """A path or an id of what `kind` says: a "checkpoint", a "gguf" file, "either", a "small" file, or "types".

    What may be an id is looked at by gguf_mla.remote.location, whose function of the kind's name returns where it lies.
    """

    name = "path"

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> Any:
        """Return a Path, or the path of what lies elsewhere; InputError for an id that leads nowhere."""
        if not isinstance(value, str):
            return value
        if "/" not in value or value.startswith(("/", "./", "../", "~")) or "\0" in value:
            return Path(value)
        from gguf_mla.remote import location  # noqa: PLC0415 - help and plain paths need none of it

        return getattr(location, self._kind)(value)
