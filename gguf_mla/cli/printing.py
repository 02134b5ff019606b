"""What commands print beside tables: warnings, and JSON that every reader takes."""

from __future__ import annotations

import json
import math
from typing import Any

import click

from gguf_mla.cli import speech
from gguf_mla.quoting import TEXT, quoted


def warn(warning: str) -> None:
    """Print a warning on standard error, on one line of bounded length."""
    text = quoted(warning, TEXT)
    log("warning", f"warning: {text}", warning=text)


def log(event: str, text: str, style: str | None = None, /, **fields: Any) -> None:
    """Print a line on standard error: a text, or an object with the event and its fields where JSON was asked for.

    `style` is the form where the thread does not know what its command was asked.
    """
    if speech.current().hearer is not None:
        return  # what counts is in the document
    if (style or speech.current().log) == speech.TEXT:
        click.echo(text, err=True)
    else:
        click.echo(as_json({"event": event, **(fields or {"text": text})}), err=True)


def as_json(data: Any, indent: int | None = None) -> str:
    """Return data as JSON in ASCII; what is no finite number, which JSON does not have, as null."""
    try:
        return json.dumps(data, allow_nan=False, indent=indent, default=str)
    except ValueError:  # a number that is not finite: only then is everything looked through
        return json.dumps(_finite(data), allow_nan=False, indent=indent, default=str)


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(item) for item in data] if isinstance(data, list | tuple) else data
