"""Chat templates of a checkpoint, from the files that may hold them.

Order, as transformers loads them: chat_template.jinja with additional_chat_templates/NAME.jinja, else the
`chat_template` of tokenizer_config.json, else that of chat_template.json.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gguf_mla.container.values import Kind, Value, array, string
from gguf_mla.errors import InputError
from gguf_mla.files.input import unreadable
from gguf_mla.sources.folder import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DEFAULT = "default"


def chat_templates(directory: Path, config: Mapping[str, Any]) -> tuple[dict[str, Value], list[str]]:
    """Return the default and the named templates as metadata, and warnings; `config` is tokenizer_config.json.

    Raises InputError for a template file that cannot be read.
    """
    stated, warnings = _by_name(config.get("chat_template"), "tokenizer_config.json")
    files = _from_files(directory)
    if files and stated and files != stated:
        warnings.append(
            "tokenizer_config.json and the .jinja files hold different chat templates; the .jinja files are used,"
            " as transformers does."
        )
    templates = files or stated
    if not templates:
        templates, warnings = _from_json(directory, warnings)
    return _metadata(templates), warnings


def _from_files(directory: Path) -> dict[str, str]:
    main = directory / "chat_template.jinja"
    named = sorted((directory / "additional_chat_templates").glob("*.jinja"))
    return {
        name: _text(path) for name, path in [(DEFAULT, main), *((path.stem, path) for path in named)] if path.is_file()
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text ({error})", file=path, remedy="Download the file again") from None


def _from_json(directory: Path, warnings: list[str]) -> tuple[dict[str, str], list[str]]:
    path = directory / "chat_template.json"
    if not path.is_file():
        return {}, warnings
    templates, more = _by_name(read_json(path).get("chat_template"), path.name)
    return templates, warnings + more


def _by_name(stated: Any, source: str) -> tuple[dict[str, str], list[str]]:
    if stated is None:
        return {}, []
    if isinstance(stated, str):
        return {DEFAULT: stated}, []
    entries = stated if isinstance(stated, list) else [stated]
    pairs = [(entry.get("name"), entry.get("template")) for entry in entries if isinstance(entry, dict)]
    templates = {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    lost = len(entries) - len(templates)
    return templates, [
        f"{source} holds {lost} chat template(s) without a name and a text of their own; they are left out."
    ] if lost else []


def _metadata(templates: Mapping[str, str]) -> dict[str, Value]:
    # GGUF names a template in a key, so a name keeps only what a key can hold.
    plain = {re.sub(r"[^A-Za-z0-9]", "_", name): text for name, text in templates.items() if name}
    names = sorted(plain.keys() - {DEFAULT})
    metadata = {f"tokenizer.chat_template.{name}": string(plain[name]) for name in names}
    if names:
        metadata["tokenizer.chat_templates"] = array(Kind.STRING, names)
    if DEFAULT in plain:
        metadata["tokenizer.chat_template"] = string(plain[DEFAULT])
    return metadata
