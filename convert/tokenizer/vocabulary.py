"""Tokens and token types of a byte-level BPE vocabulary in GGUF's terms.

Types (llama.cpp's `llama_token_type`): NORMAL 1, CONTROL 3, USER_DEFINED 4, UNUSED 5. An added token is CONTROL when it
is special or looks it, else USER_DEFINED; an id without a token is `[PADid]`, UNUSED.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.text.ranks import byte_values

if TYPE_CHECKING:
    from gguf_mla.sources.vocabulary import AddedToken, Vocabulary

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
LARGEST_VOCABULARY = 1 << 24  # the largest published is below 2^20; more is a damaged number, not worth the memory

# Tokens that checkpoints add without marking them special, though text never means them; DeepSeek's <｜User｜> is one.
SPECIAL_LOOKS = frozenset({"<pad>", "<mask>", "<2mass>", "[@BOS@]"})
SPECIAL_BRACKETS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))


def token_table(vocabulary: Vocabulary, vocab_size: int) -> tuple[list[str], list[int], list[str]]:
    """Return `vocab_size` tokens, their types, and warnings.

    Raises InputError when a token's id has no row in the model (id ≥ vocab_size).
    """
    _check_range(vocabulary, vocab_size)
    tokens: list[str | None] = [None] * vocab_size
    types = [NORMAL] * vocab_size
    warnings: list[str] = []
    for token, number in vocabulary.ids.items():
        tokens[number] = token
    for added in vocabulary.added.values():
        tokens[added.id], types[added.id] = _written(added, warnings)
    return _filled(tokens, types), types, warnings


def _filled(tokens: list[str | None], types: list[int]) -> list[str]:
    for number, token in enumerate(tokens):
        if token is None:
            tokens[number], types[number] = f"[PAD{number}]", UNUSED
    return [token or "" for token in tokens]


def _check_range(vocabulary: Vocabulary, vocab_size: int) -> None:
    config = vocabulary.file.with_name("config.json")
    if not 0 < vocab_size <= LARGEST_VOCABULARY:
        raise InputError(
            "vocab_size is not the size of a vocabulary",
            file=config,
            expected=f"1 to {LARGEST_VOCABULARY}",
            found=f"{vocab_size!r:.80}",
        )
    numbers = vocabulary.ids | {token.content: token.id for token in vocabulary.added.values()}
    if max(numbers.values()) >= vocab_size:
        token = next(token for token, number in numbers.items() if number >= vocab_size)
        raise InputError(
            f"token {token!r:.80} has an id beyond the model's vocabulary",
            file=vocabulary.file,
            expected=f"less than {vocab_size}, the vocab_size of {config.name}",
            found=numbers[token],
            remedy="Take the tokenizer that belongs to this checkpoint",
        )


def _written(token: AddedToken, warnings: list[str]) -> tuple[str, int]:
    text = token.content if token.normalized else _decoded(token.content, warnings)
    if token.special or looks_special(text):
        return text, CONTROL
    # SentencePiece's mark for a space, which a byte-level engine would look for literally.
    return text.replace("▁", " "), USER_DEFINED


def looks_special(text: str) -> bool:
    """Whether a token that is not marked special reads as one; the list is the one llama.cpp's converter goes by."""
    return text in SPECIAL_LOOKS or any(
        text.startswith(start) and text.endswith(end) for start, end in SPECIAL_BRACKETS
    )


def _decoded(content: str, warnings: list[str]) -> str:
    """Return the text that the tokenizer's decoder prints for an added token that is matched in raw text.

    The byte-level decoder reads a token as bytes when every character stands for one, so `Ġx` prints as ` x`, and any
    token of printable ASCII as itself. Where the bytes are not text the token keeps its spelling, which is what text is
    matched with.
    """
    try:
        text = bytes(map(byte_values().__getitem__, content)).decode()
    except KeyError:
        return content
    except UnicodeDecodeError:
        warnings.append(
            f"The added token {content!r} stands for bytes that are not text; it is written as it is spelled."
        )
        return content
    if text != content:
        warnings.append(f"The added token {content!r} is written as {text!r}, which is how the tokenizer prints it.")
    return text
