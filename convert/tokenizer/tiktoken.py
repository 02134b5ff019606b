"""A vocabulary that a checkpoint has as `tiktoken.model` (Kimi, Moonlight), in the terms of a tokenizer.json.

The file holds tokens and ranks. How text is split, and which ids are special, stands in Python code beside it, which is
never run: the code of all of them is known by the name of its class, `TikTokenTokenizer`. It splits as `kimi-k2`, and
has 256 special tokens after the others; `added_tokens_decoder` in tokenizer_config.json names some, the rest are
`<|reserved_token_ID|>`. Source: tokenization_kimi.py and tokenization_moonshot.py as published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convert.tokenizer import pretokenizers
from gguf_mla.errors import EDITED, InputError
from gguf_mla.text.ranks import bpe_of, byte_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gguf_mla.sources.tokenizer_files import TokenizerFiles
CLASS, PRE = "TikTokenTokenizer", "kimi-k2"
SPECIAL_TOKENS = 256


def tokenizer_of_ranks(files: TokenizerFiles, vocab_size: int, pre: str | None) -> tuple[dict[str, Any], list[str]]:
    """Return what a tokenizer.json would say, and warnings; `pre` is what --pre names.

    Raises InputError for a byte without a token, and a class whose splitting is not known.
    """
    config = files.config
    if pre is None and config.get("tokenizer_class") != CLASS:
        raise InputError(
            "does not say how text is split into the pieces that are tokenized",
            file=files.path,
            expected=f"{CLASS} as tokenizer_class in tokenizer_config.json",
            found=config.get("tokenizer_class"),
            remedy="If the model splits text like one that is known, name it with --pre NAME",
        )
    bpe = bpe_of(files.ranks or {})
    if missing := [byte for character, byte in byte_values().items() if character not in bpe.vocab]:
        raise InputError(f"has no token for byte {min(missing)}", file=files.path, remedy=EDITED)
    first = len(bpe.vocab)
    tokenizer = {
        "model": {"type": "BPE", "vocab": bpe.vocab, "merges": bpe.merges},
        "added_tokens": _reserved(range(first, min(first + SPECIAL_TOKENS, vocab_size)), config),
        "pre_tokenizer": _section(),
    }
    return tokenizer, _warnings(bpe.unreachable)


def _reserved(ids: range, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    named = config.get("added_tokens_decoder")
    taken = named if isinstance(named, dict) else {}
    return [
        {"id": number, "content": f"<|reserved_token_{number}|>", "special": True}
        for number in ids
        if str(number) not in taken
    ]


def _section() -> dict[str, Any]:
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
        for pattern in pretokenizers.named(PRE).patterns
    ]
    last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*splits, last]}


def _warnings(unreachable: list[str]) -> list[str]:
    if not unreachable:
        return []
    shown = ", ".join(map(repr, unreachable[:5]))
    return [
        f"{len(unreachable)} tokens of tiktoken.model are not two others joined; llama.cpp will not use them: {shown}."
    ]
