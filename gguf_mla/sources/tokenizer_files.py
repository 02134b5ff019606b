"""What a checkpoint's files say about its tokenizer, read once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError
from gguf_mla.files.bounds import TEMPLATE_BYTES, bounded
from gguf_mla.text import ranks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gguf_mla.sources.folder import Folder

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE, TEMPLATES, TEMPLATE_JSON = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
MAX_TEMPLATES = 16
DEFAULT = "default"  # the template of chat_template.jinja


@dataclass(frozen=True)
class TokenizerFiles:
    """The content of the files; of one that is optional and missing, an empty object.

    path        the file that gives the tokens: tokenizer.json, or tiktoken.model in its place
    tokenizer   tokenizer.json, None where there is none
    ranks       the tokens of tiktoken.model with their ranks; None beside a tokenizer.json
    config      tokenizer_config.json
    model       config.json
    generation  generation_config.json
    templates   the chat templates that are files of their own, by name
    stated      chat_template.json; not read where other files settle which templates there are
    """

    path: PurePath
    tokenizer: dict[str, Any] | None
    ranks: dict[bytes, int] | None
    config: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    stated: dict[str, Any] = field(default_factory=dict)


def read_tokenizer(folder: Folder) -> TokenizerFiles:
    """Read the tokenizer's files; InputError for one that is damaged, and when none gives the tokens."""
    names = frozenset(folder.names())

    def optional(name: str) -> dict[str, Any]:
        return folder.json(name) if name in names else {}

    config = optional(CONFIG)
    file = next((name for name in (TOKENIZER, ranks.FILE) if name in names), None)
    if file is None:
        raise _no_tokenizer(folder, names)
    tokenizer = folder.json(file) if file == TOKENIZER else None
    by_rank = ranks.read_ranks(folder.open(file)) if file == ranks.FILE else None
    model, generation = optional("config.json"), optional("generation_config.json")
    templates = _templates(folder, names)
    settled = templates or isinstance(config.get("chat_template"), str)
    stated = {} if settled else optional(TEMPLATE_JSON)
    return TokenizerFiles(folder.path / file, tokenizer, by_rank, config, model, generation, templates, stated)


def _no_tokenizer(folder: Folder, names: frozenset[str]) -> InputError:
    there = [name for name in ("tokenizer.model", "vocab.json") if name in names]
    return InputError(
        "there is no tokenizer.json",
        file=folder.path,
        found=f"only {there[0]}" if there else "none",
        expected=f"tokenizer.json or {ranks.FILE}",
        remedy="Download it and tokenizer_config.json into the checkpoint's directory",
    )


def _templates(folder: Folder, names: frozenset[str]) -> dict[str, str]:
    main = {DEFAULT: TEMPLATE} if TEMPLATE in names else {}
    named = {PurePosixPath(name).stem: name for name in folder.names(TEMPLATES) if name.endswith(".jinja")}
    bounded(len(named), MAX_TEMPLATES, "the number of chat templates", file=folder.path / TEMPLATES)
    return {template: folder.text(name, TEMPLATE_BYTES) for template, name in (main | named).items()}
