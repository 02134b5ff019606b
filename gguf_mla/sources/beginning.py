"""The token that a checkpoint's tokenizer puts before every text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla.sources.vocabulary import content_of, read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gguf_mla.sources.tokenizer_files import TokenizerFiles

BEGINNING = "<｜begin▁of▁sentence｜>"  # DeepSeek's, which begins every text where the files do not say


def bos_of(files: TokenizerFiles, *, always: bool) -> int | None:
    """Return the id of the token that begins every text, None where none does.

    `always`: the makers' own prompts begin with it, whatever the files say.
    """
    name = content_of(files.config.get("bos_token")) or _first(files.tokenizer or {})
    stated = files.config.get("add_bos_token")
    adds = stated if isinstance(stated, bool) else _first(files.tokenizer or {}) == name or name == BEGINNING
    if name is None or not (adds or always) or files.tokenizer is None:
        return None
    return read_vocabulary(files.tokenizer, files.config, files.path).find(name)


def _first(tokenizer: Mapping[str, Any]) -> str | None:
    """Return the special token that a post-processor's template puts first."""
    section = tokenizer.get("post_processor")
    listed = section.get("processors", [section]) if isinstance(section, dict) else []
    for processor in listed if isinstance(listed, list) else []:
        single = processor.get("single") if isinstance(processor, dict) else None
        piece = single[0] if isinstance(single, list) and single else None
        special = piece.get("SpecialToken") if isinstance(piece, dict) else None
        if isinstance(special, dict) and isinstance(special.get("id"), str):
            return str(special["id"])
    return None
