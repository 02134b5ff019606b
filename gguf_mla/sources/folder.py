"""The small files of a checkpoint's directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError
from gguf_mla.files import json_text
from gguf_mla.files.input import InputFile

if TYPE_CHECKING:
    from pathlib import Path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; InputError names the file when it is missing, damaged or no object."""
    try:
        with InputFile(path) as file:
            content = json_text.parse(file.read(0, min(file.size, json_text.MAX_BYTES + 1)).tobytes())
    except ValueError as error:
        raise InputError(f"is not valid JSON ({error})", file=path, remedy="Download it again") from None
    if not isinstance(content, dict):
        raise InputError("is not a JSON object", file=path, expected="an object", found=type(content).__name__)
    return content
