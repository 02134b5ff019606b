"""Chat templates of a checkpoint, from the files that may hold them.

Order, as transformers loads them: chat_template.jinja with additional_chat_templates/NAME.jinja, else the
`chat_template` of tokenizer_config.json, else that of chat_template.json. A model that is published without any, and
with a script that encodes its prompts, has one here (gguf_mla/data/templates).
"""

from __future__ import annotations

import re
from importlib.resources import files as resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_mla.container.values import Kind, Value, array, string
from gguf_mla.sources.tokenizer_files import CONFIG, DEFAULT, TEMPLATE_JSON

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gguf_mla.sources.tokenizer_files import TokenizerFiles


def chat_templates(files: TokenizerFiles, own: str = "") -> tuple[dict[str, Value], list[str]]:
    """Return the default and the named templates as metadata, and warnings; `own` names what stands in for none."""
    stated, warnings = _by_name(files.config.get("chat_template"), CONFIG)
    if files.templates and stated and files.templates != stated:
        warnings.append(
            "tokenizer_config.json and the .jinja files hold different chat templates; the .jinja files are used,"
            " as transformers does."
        )
    templates = files.templates or stated
    if not templates:
        templates, more = _by_name(files.stated.get("chat_template"), TEMPLATE_JSON)
        warnings += more
    if not templates and own:
        templates = {DEFAULT: (Path(str(resources("gguf_mla"))) / "data" / "templates" / own).read_text("utf-8")}
    return _metadata(templates), warnings


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
