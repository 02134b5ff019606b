"""The candidate's tokenizer against the reference's: its tokenizer files, or another GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gguf_mla.sources.vocabulary import read_vocabulary
from gguf_mla.text import ranks
from verify.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gguf_mla.sources.tokenizer_files import TokenizerFiles

PREFIX = "tokenizer.ggml."
SPACE = "Ġ"  # how the byte alphabet writes a space
NAMED = {"bos_token": "bos_token_id", "eos_token": "eos_token_id"}
STATED = ("add_bos_token", "add_eos_token")


def against_files(
    files: TokenizerFiles, metadata: Mapping[str, Any], vocab: int, stated: Mapping[str, bool]
) -> Iterator[Finding]:
    """Yield what the candidate says otherwise than the checkpoint's tokenizer files, or `stated` in their place."""
    tokenizer = _of_ranks(files.ranks or {}) if files.tokenizer is None else files.tokenizer
    read_vocabulary(tokenizer, files.config, files.path)  # refuses what is damaged; what it says is read anew here
    config = {**files.config, **stated}
    ids = expected_ids(tokenizer, config)
    yield from _tokens(ids, _listed(metadata, "tokens"), vocab)
    yield from _first_difference("merges", _merges(tokenizer), _listed(metadata, "merges"))
    yield from _no_tokens(metadata, vocab)
    for name, key in NAMED.items():
        content = _content(config.get(name))
        if content in ids and metadata.get(PREFIX + key) != ids[content]:
            yield _wrong(key, f"{ids[content]}, {content!r}", metadata.get(PREFIX + key))
    for key in STATED:
        if isinstance(config.get(key), bool) and metadata.get(PREFIX + key, False) != config[key]:
            yield _wrong(key, config[key], metadata.get(PREFIX + key))


def _of_ranks(by_token: dict[bytes, int]) -> dict[str, Any]:
    """Return what a tokenizer.json would hold in place of tiktoken.model."""
    found = ranks.bpe_of(by_token)
    return {"model": {"vocab": found.vocab, "merges": found.merges}}


def expected_ids(tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int]:
    """Return every token's id; added tokens win over the model's own."""
    listed = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}
    more = {token["content"]: int(number) for number, token in (config.get("added_tokens_decoder") or {}).items()}
    return {**tokenizer["model"]["vocab"], **listed, **more}


def _tokens(ids: Mapping[str, int], tokens: Sequence[str], vocab: int) -> Iterator[Finding]:
    if len(tokens) != vocab:
        yield _wrong("tokens", f"{vocab} tokens, a row of the embedding each", len(tokens))
        return
    for content, number in sorted(ids.items(), key=lambda item: item[1]):
        # Tokens added for the user are written with plain spaces, which engines look for literally.
        if number < vocab and tokens[number] not in (content, content.replace("▁", " ")):
            yield Finding(
                "structure", PREFIX + "tokens", f"token {number} is another", repr(content), repr(tokens[number])
            )
            return


def _merges(tokenizer: Mapping[str, Any]) -> list[str]:
    merges = tokenizer["model"]["merges"]
    return [m if isinstance(m, str) else " ".join(part.replace(" ", SPACE) for part in m) for m in merges]


def against_file(reference: Mapping[str, Any], metadata: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what the candidate says otherwise than another GGUF file."""
    for key in ("tokens", "merges", "token_type"):
        yield from _first_difference(key, _listed(reference, key), _listed(metadata, key))
    yield from _no_tokens(metadata, len(_listed(metadata, "tokens")))
    for key in ("pre", *NAMED.values(), *STATED):
        if reference.get(PREFIX + key) != metadata.get(PREFIX + key):
            yield _wrong(key, reference.get(PREFIX + key), metadata.get(PREFIX + key))


def _listed(metadata: Mapping[str, Any], key: str) -> Sequence[Any]:
    """Return an array of the metadata; an empty one for anything else, which is then too short."""
    found = metadata.get(PREFIX + key)
    return found if isinstance(found, Sequence) and not isinstance(found, str) else ()


def _no_tokens(metadata: Mapping[str, Any], vocab: int) -> Iterator[Finding]:
    """Yield the special tokens that no token of the vocabulary has the id of."""
    for key in NAMED.values():
        found = metadata.get(PREFIX + key)
        if found is not None and not (type(found) is int and 0 <= found < vocab):
            yield Finding("structure", PREFIX + key, "is not a token of the vocabulary", f"0 to {vocab - 1}", found)


def _first_difference(key: str, expected: Sequence[Any], found: Sequence[Any]) -> Iterator[Finding]:
    if len(expected) != len(found):
        yield _wrong(key, f"{len(expected)} entries", len(found))
        return
    for number, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        if ours != theirs:
            yield Finding("structure", PREFIX + key, f"entry {number} is another", repr(ours), repr(theirs))
            return


def _wrong(key: str, expected: object, found: object) -> Finding:
    return Finding("structure", PREFIX + key, "is wrong", expected, "nothing" if found is None else found)


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
