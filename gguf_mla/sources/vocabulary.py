"""The vocabulary that a tokenizer.json defines, with tokenizer_config.json: every shape of damage is a sentence.

Tokens with their ids, added tokens and merges are read by type and checked against each other. What a GGUF file makes
of them is the converter's; the judge has its own reading, of files that have passed here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import EDITED, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import PurePath

LARGEST_ID = (1 << 31) - 1  # GGUF's ids are 32 bits, and engines read them signed
NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # what tokenizer_config.json names as KIND_token
ENCODED_SPACE = chr(ord(" ") + 256)
_DECIMAL = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True)
class AddedToken:
    """An added token: matched in the text before anything is split."""

    id: int
    content: str
    special: bool
    normalized: bool


@dataclass(frozen=True)
class Vocabulary:
    """What tokenizer.json defines: `ids` holds the model's own vocabulary, `added` the added tokens by content.

    `notes` are sentences on what tokenizer_config.json says against it.
    """

    file: PurePath
    ids: dict[str, int]
    added: Mapping[str, AddedToken]
    merges: list[str]
    notes: tuple[str, ...] = ()

    def find(self, content: str) -> int | None:
        """Return the id of a token by its text, None when there is none."""
        added = self.added.get(content)
        return added.id if added else self.ids.get(content)


def read_vocabulary(tokenizer: dict[str, Any], config: Mapping[str, Any], file: PurePath) -> Vocabulary:
    """Check a tokenizer.json and return its vocabulary; `config` is tokenizer_config.json, which may add tokens.

    Raises InputError for another model than BPE, ids that clash or are not ids, merges that name unknown tokens.
    """
    _check_named(config, file.with_name("tokenizer_config.json"))
    model = _bpe(tokenizer.get("model"), file)
    ids = _checked_ids(model.get("vocab"), file)
    added, notes = _added_tokens(tokenizer.get("added_tokens"), config, ids, file)
    return Vocabulary(file, ids, added, _merges(model.get("merges"), ids, file), notes)


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
        raise InputError("model.vocab is not a mapping of tokens to ids", file=file, remedy=EDITED)
    if set(map(type, vocab.values())) != {int}:
        token, value = next((token, value) for token, value in vocab.items() if type(value) is not int)
        raise InputError(
            f"token {_short(token)} has the id {_short(value)}, which is not an integer", file=file, remedy=EDITED
        )
    for extreme, wrong in ((min, "negative"), (max, "larger than any vocabulary")):
        token, value = extreme(vocab.items(), key=lambda item: item[1])
        if not 0 <= value <= LARGEST_ID:
            raise InputError(
                f"token {_short(token)} has the id {_short(value)}, which is {wrong}", file=file, remedy=EDITED
            )
    if len(set(vocab.values())) != len(vocab):
        _refuse_duplicate(vocab, file)
    return vocab


def _refuse_duplicate(vocab: dict[str, int], file: PurePath) -> None:
    seen: dict[int, str] = {}
    for token, number in vocab.items():
        if number in seen:
            raise InputError(
                f"id {number} is given to both {_short(seen[number])} and {_short(token)}", file=file, remedy=EDITED
            )
        seen[number] = token


def _added_tokens(
    listed: Any, config: Mapping[str, Any], ids: Mapping[str, int], file: PurePath
) -> tuple[dict[str, AddedToken], tuple[str, ...]]:
    """Merge the added tokens of both files, and tell of those in the configuration that contradict tokenizer.json.

    Where they agree, the configuration's flags win, as transformers loads them.
    """
    if not isinstance(listed, list | None):
        raise InputError("added_tokens is not a list", file=file, remedy=EDITED)
    added: dict[str, AddedToken] = {}
    numbers = dict(ids)
    owners = {number: token for token, number in ids.items()}
    for token in _listed(listed or [], file):
        if clash := _clash(token, owners, numbers):
            raise InputError(clash, file=file, remedy=EDITED)
        added[token.content] = token
    against = []
    for token in _decoder_tokens(config, file):
        if clash := _clash(token, owners, numbers):
            if file.suffix != ".json":  # beside tiktoken.model nothing else says which tokens are added
                raise InputError(clash, file=file, remedy=EDITED)
            against.append(clash)
        else:
            added[token.content] = token
    return _with_named(added, config), _contradictions(against)


def _clash(token: AddedToken, owners: dict[int, str], numbers: dict[str, int]) -> str | None:
    """Return what a token contradicts; None, and it is noted in both, where it contradicts nothing."""
    owner, number = owners.get(token.id, token.content), numbers.get(token.content, token.id)
    if owner != token.content:
        return f"id {token.id} is given to both {_short(owner)} and {_short(token.content)}"
    if number != token.id:
        return f"token {_short(token.content)} has two ids, {number} and {token.id}"
    owners[token.id], numbers[token.content] = token.content, token.id
    return None


def _contradictions(against: list[str]) -> tuple[str, ...]:
    if not against:
        return ()
    more = f", and {len(against) - 1} more" if against[1:] else ""
    said = f"tokenizer_config.json's added_tokens_decoder contradicts tokenizer.json, which counts: {against[0]}{more}."
    return (said,)


def _listed(listed: list[Any], file: PurePath) -> Iterator[AddedToken]:
    for entry in listed:
        yield _added(entry, entry.get("id") if isinstance(entry, dict) else None, file)


def _decoder_tokens(config: Mapping[str, Any], file: PurePath) -> Iterator[AddedToken]:
    decoder = config.get("added_tokens_decoder")
    source = file.with_name("tokenizer_config.json")
    if not isinstance(decoder, dict | None):
        raise InputError("added_tokens_decoder is not an object", file=source, remedy=EDITED)
    for number, entry in (decoder or {}).items():
        yield _added(entry, int(number) if _DECIMAL.fullmatch(number) else number, source)


def _added(entry: Any, number: Any, file: PurePath) -> AddedToken:
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, str) or not content or type(number) is not int or not 0 <= number <= LARGEST_ID:
        raise InputError(
            f"an added token needs a text and an id of 0 or more, this has {_short(content)} and {_short(number)}",
            file=file,
            remedy=EDITED,
        )
    special, normalized = entry.get("special", False), entry.get("normalized", True)
    return AddedToken(number, content, special is True, normalized is not False)


def _with_named(added: dict[str, AddedToken], config: Mapping[str, Any]) -> dict[str, AddedToken]:
    """Mark the tokens that the configuration names as bos, eos, pad and so on as special, as transformers does."""
    for kind in NAMED:
        content = content_of(config.get(f"{kind}_token"))
        if content in added:
            added[content] = replace(added[content], special=True)
    return added


def _check_named(config: Mapping[str, Any], file: PurePath) -> None:
    for kind in NAMED:
        token = config.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if not isinstance(text, str | None) or (text is None and token is not None):
            raise InputError(
                f"{kind}_token cannot be used",
                file=file,
                expected="a text, or an object with a text as content",
                found=_short(token),
                remedy=EDITED,
            )


def content_of(token: Any) -> str | None:
    """Return the text of a token that a configuration names, as a string or as an AddedToken object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _merges(merges: Any, ids: Mapping[str, int], file: PurePath) -> list[str]:
    """Return merges as "a b", from either of tokenizer.json's forms: "a b", or ["a", "b"] where tokens hold spaces."""
    if not isinstance(merges, list):
        raise InputError(
            "model.merges is not a list", file=file, expected="a list", found=type(merges).__name__, remedy=EDITED
        )
    for number, merge in enumerate(merges):
        if not _is_merge(merge, ids):
            raise InputError(
                f"merge {number} is not a pair of tokens that model.vocab holds, joined too",
                file=file,
                expected="'a b' or ['a', 'b']",
                found=_short(merge),
                remedy=EDITED,
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
