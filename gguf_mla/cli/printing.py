"""What commands print beside tables: warnings, and JSON that every reader takes."""

from __future__ import annotations

import json
import math
from typing import Any

import click

from gguf_mla.quoting import TEXT, quoted


def warn(warning: str) -> None:
    """Print a warning on standard error, on one line of bounded length."""
    click.echo(f"warning: {quoted(warning, TEXT)}", err=True)


def as_json(data: Any, indent: int | None = None) -> str:
    """Return data as JSON in ASCII; what is no finite number, which JSON does not have, as null."""
    return json.dumps(_finite(data), allow_nan=False, indent=indent, default=str)


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(item) for item in data] if isinstance(data, list | tuple) else data
