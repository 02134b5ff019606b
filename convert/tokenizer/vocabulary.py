"""Tokens, token types and merges of a byte-level BPE tokenizer.json, checked and in GGUF's terms.

Types (llama.cpp's `llama_token_type`): NORMAL 1, CONTROL 3, USER_DEFINED 4, UNUSED 5. An added token is CONTROL when it
is special or looks it, else USER_DEFINED; an id without a token is `[PADid]`, UNUSED.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError
from gguf_mla.text.ranks import byte_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import PurePath

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
LARGEST_VOCABULARY = 1 << 24  # the largest published is below 2^20; more is a damaged number, not worth the memory
ENCODED_SPACE = chr(ord(" ") + 256)

# Tokens that checkpoints add without marking them special, though text never means them; DeepSeek's <｜User｜> is one.
SPECIAL_LOOKS = frozenset({"<pad>", "<mask>", "<2mass>", "[@BOS@]"})
SPECIAL_BRACKETS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))

AGAIN = "Download the file again"


@dataclass(frozen=True)
class AddedToken:
    """An added token: matched in the text before anything is split."""

    id: int
    content: str
    special: bool
    normalized: bool


@dataclass(frozen=True)
class Vocabulary:
    """What tokenizer.json defines: `ids` holds the model's own vocabulary, `added` the added tokens by content."""

    file: PurePath
    ids: dict[str, int]
    added: Mapping[str, AddedToken]
    merges: list[str]

    def find(self, content: str) -> int | None:
        """Return the id of a token by its text, None when there is none."""
        added = self.added.get(content)
        return added.id if added else self.ids.get(content)


def read_vocabulary(tokenizer: dict[str, Any], config: Mapping[str, Any], file: PurePath) -> Vocabulary:
    """Check a tokenizer.json and return its vocabulary; `config` is tokenizer_config.json, which may add tokens.

    Raises InputError for another model than BPE, ids that clash or are not ids, merges that name unknown tokens.
    """
    model = _bpe(tokenizer.get("model"), file)
    ids = _checked_ids(model.get("vocab"), file)
    added = _added_tokens(tokenizer.get("added_tokens"), config, ids, file)
    return Vocabulary(file, ids, added, _merges(model.get("merges"), ids, file))


def _bpe(model: Any, file: PurePath) -> dict[str, Any]:
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if kind != "BPE":
        raise InputError(
            "model is not BPE",
            file=file,
            expected="type BPE",
            found=_short(kind),
            remedy="Only byte-level BPE tokenizers can be converted",
        )
    for option in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise InputError(
                f"model.{option} is set, which GGUF's byte-level BPE cannot express",
                file=file,
                expected="off",
                found=_short(model[option]),
            )
    return dict(model)


def _checked_ids(vocab: Any, file: PurePath) -> dict[str, int]:
    if not isinstance(vocab, dict) or not vocab:
        raise InputError("model.vocab is not a mapping of tokens to ids", file=file, remedy=AGAIN)
    if set(map(type, vocab.values())) != {int}:
        token, value = next((token, value) for token, value in vocab.items() if type(value) is not int)
        raise InputError(
            f"token {_short(token)} has the id {_short(value)}, which is not an integer", file=file, remedy=AGAIN
        )
    if min(vocab.values()) < 0:
        token, value = min(vocab.items(), key=lambda item: item[1])
        raise InputError(
            f"token {_short(token)} has the id {_short(value)}, which is negative", file=file, remedy=AGAIN
        )
    if len(set(vocab.values())) != len(vocab):
        _refuse_duplicate(vocab, file)
    return vocab


def _refuse_duplicate(vocab: dict[str, int], file: PurePath) -> None:
    seen: dict[int, str] = {}
    for token, number in vocab.items():
        if number in seen:
            raise InputError(
                f"id {number} is given to both {_short(seen[number])} and {_short(token)}", file=file, remedy=AGAIN
            )
        seen[number] = token


def _added_tokens(
    listed: Any, config: Mapping[str, Any], ids: Mapping[str, int], file: PurePath
) -> dict[str, AddedToken]:
    """Merge the added tokens of both files, the configuration's flags winning, as transformers loads them."""
    if not isinstance(listed, list | None):
        raise InputError("added_tokens is not a list", file=file, remedy=AGAIN)
    added: dict[str, AddedToken] = {}
    numbers = dict(ids)
    owners = {number: token for token, number in ids.items()}
    for token in [*_listed(listed or [], file), *_decoder_tokens(config, file)]:
        owner = owners.setdefault(token.id, token.content)
        if owner != token.content:
            raise InputError(
                f"id {token.id} is given to both {_short(owner)} and {_short(token.content)}", file=file, remedy=AGAIN
            )
        if numbers.setdefault(token.content, token.id) != token.id:
            clash = f"{numbers[token.content]} and {token.id}"
            raise InputError(f"token {_short(token.content)} has two ids, {clash}", file=file, remedy=AGAIN)
        added[token.content] = token
    return _with_named(added, config)


def _listed(listed: list[Any], file: PurePath) -> Iterator[AddedToken]:
    for entry in listed:
        yield _added(entry, entry.get("id") if isinstance(entry, dict) else None, file)


def _decoder_tokens(config: Mapping[str, Any], file: PurePath) -> Iterator[AddedToken]:
    decoder = config.get("added_tokens_decoder")
    source = file.with_name("tokenizer_config.json")
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        yield _added(entry, int(number) if number.isascii() and number.isdecimal() else None, source)


def _added(entry: Any, number: Any, file: PurePath) -> AddedToken:
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, str) or not content or type(number) is not int or number < 0:
        raise InputError(
            f"an added token needs a text and an id of 0 or more, this has {_short(content)} and {_short(number)}",
            file=file,
            remedy=AGAIN,
        )
    special, normalized = entry.get("special", False), entry.get("normalized", True)
    return AddedToken(number, content, special is True, normalized is not False)


def _with_named(added: dict[str, AddedToken], config: Mapping[str, Any]) -> dict[str, AddedToken]:
    """Mark the tokens that the configuration names as bos, eos, pad and so on as special, as transformers does."""
    for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        content = content_of(config.get(f"{kind}_token"))
        if content in added:
            added[content] = replace(added[content], special=True)
    return added


def content_of(token: Any) -> str | None:
    """Return the text of a token that a configuration names, as a string or as an AddedToken object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


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
            found=_short(vocab_size),
        )
    numbers = vocabulary.ids | {token.content: token.id for token in vocabulary.added.values()}
    if max(numbers.values()) >= vocab_size:
        token = next(token for token, number in numbers.items() if number >= vocab_size)
        raise InputError(
            f"token {_short(token)} has an id beyond the model's vocabulary",
            file=vocabulary.file,
            expected=f"less than {vocab_size}, the vocab_size of {config.name}",
            found=_short(numbers[token]),
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


def _merges(merges: Any, ids: Mapping[str, int], file: PurePath) -> list[str]:
    """Return merges as "a b", from either of tokenizer.json's forms: "a b", or ["a", "b"] where tokens hold spaces."""
    if not isinstance(merges, list):
        raise InputError(
            "model.merges is not a list", file=file, expected="a list", found=type(merges).__name__, remedy=AGAIN
        )
    for number, merge in enumerate(merges):
        if not _is_merge(merge, ids):
            raise InputError(
                f"merge {number} is not a pair of tokens that model.vocab holds, joined too",
                file=file,
                expected="'a b' or ['a', 'b']",
                found=_short(merge),
                remedy=AGAIN,
            )
    return [merge if type(merge) is str else _joined(merge) for merge in merges]


def _is_merge(merge: Any, ids: Mapping[str, int]) -> bool:
    if type(merge) is str:
        a, _, b = merge.partition(" ")
    elif isinstance(merge, list) and len(merge) == 2 and all(type(part) is str for part in merge):
        a, b = merge
    else:
        return False
    return a in ids and b in ids and a + b in ids


def _joined(merge: list[str]) -> str:
    return " ".join(part.replace(" ", ENCODED_SPACE) for part in merge)


def _short(value: object) -> str:
    """Return a value for a sentence, cut where a hostile file made it long."""
    return f"{value!r:.80}"
