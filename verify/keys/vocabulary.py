"""The candidate's tokens, their types and merges, against the checkpoint's tokenizer files or another GGUF file's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_mla.sources.vocabulary import content_of, read_vocabulary
from gguf_mla.text import ranks
from verify.findings import Finding, Grade
from verify.keys.expected import LEVEL, same, short

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gguf_mla.sources.tokenizer_files import TokenizerFiles

PREFIX = "tokenizer.ggml."
TOKENS, TYPES, MERGES = (PREFIX + name for name in ("tokens", "token_type", "merges"))
SPACE = "Ġ"  # how the byte alphabet writes a space
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
NAMES = {NORMAL: "normal", CONTROL: "control", USER_DEFINED: "user-defined", UNUSED: "unused"}
NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # what tokenizer_config.json names as KIND_token


@dataclass(frozen=True)
class Tokens:
    """What tokenizer files define.

    ids     every token's id; added tokens win over the model's own
    added   the ids of tokens that are looked for in a text before it is cut, and whether they are marked special
    merges  as GGUF writes them
    """

    ids: Mapping[str, int]
    added: Mapping[int, bool]
    merges: Sequence[str]


def tokens_of(files: TokenizerFiles) -> Tokens:
    """Return what a checkpoint's files define; InputError for damaged ones."""
    tokenizer = _of_ranks(files.ranks or {}) if files.tokenizer is None else files.tokenizer
    read_vocabulary(tokenizer, files.config, files.path)  # refuses what is damaged; what it says is read anew here
    listed = [(token["id"], token) for token in tokenizer.get("added_tokens") or ()]
    ids = {**tokenizer["model"]["vocab"], **{token["content"]: number for number, token in listed}}
    contents = {number: content for content, number in ids.items()}
    for text, token in (files.config.get("added_tokens_decoder") or {}).items():
        number, content = int(text), token["content"]
        if (ids.get(content, number), contents.get(number, content)) == (number, content):  # else tokenizer.json counts
            listed.append((number, token))
            ids[content], contents[number] = number, content
    added = {number: token.get("special") is True for number, token in listed}
    named = (content_of(files.config.get(f"{kind}_token")) for kind in NAMED)
    special = {ids[content]: True for content in named if content in ids and ids[content] in added}
    return Tokens(ids, added | special, _merges(tokenizer))


def _of_ranks(by_token: dict[bytes, int]) -> dict[str, Any]:
    """Return what a tokenizer.json would hold in place of tiktoken.model."""
    found = ranks.bpe_of(by_token)
    return {"model": {"vocab": found.vocab, "merges": found.merges}}


def _merges(tokenizer: Mapping[str, Any]) -> list[str]:
    merges = tokenizer["model"]["merges"]
    return [m if isinstance(m, str) else " ".join(part.replace(" ", SPACE) for part in m) for m in merges]


def against_files(expected: Tokens, metadata: Mapping[str, Any], vocab: int) -> Iterator[Finding]:
    """Yield what the candidate's vocabulary says otherwise than a checkpoint's files."""
    tokens = listed(metadata, TOKENS)
    if len(tokens) != vocab:
        yield Finding(LEVEL, TOKENS, "is wrong", f"{vocab} tokens, a row of the embedding each", len(tokens))
    else:
        yield from _tokens(expected.ids, tokens, vocab)
        yield from _types(expected, metadata, vocab)
    yield from first_difference(MERGES, expected.merges, listed(metadata, MERGES))


def _tokens(ids: Mapping[str, int], tokens: Sequence[str], vocab: int) -> Iterator[Finding]:
    for content, number in sorted(ids.items(), key=lambda item: item[1]):
        if number < vocab and tokens[number] != content and tokens[number] not in _spellings(content):
            found = repr(tokens[number])
            yield Finding(LEVEL, TOKENS, f"token {number} is another", repr(content), found)
            return


def _spellings(content: str) -> Iterator[str]:
    """Yield how an added token may be written: with plain spaces, which engines look for literally, or as printed."""
    yield content.replace("▁", " ")
    values = ranks.byte_values()
    if all(character in values for character in content):
        yield bytes(map(values.__getitem__, content)).decode(errors="replace")


def _types(expected: Tokens, metadata: Mapping[str, Any], vocab: int) -> Iterator[Finding]:
    types = listed(metadata, TYPES)
    if len(types) != vocab:
        what = "is wrong: without it llama.cpp takes all tokens for normal ones"
        yield Finding(LEVEL, TYPES, what, f"{vocab} types", len(types))
        return
    allowed = _allowed(expected, vocab)
    wrong: dict[Grade, list[int]] = defaultdict(list)
    for number, found in enumerate(types):
        best, others = allowed.get(number, ((NORMAL,), ()))
        if found not in best:
            wrong[Grade.DIFFERS if found in others else Grade.WRONG].append(number)
    for grade, numbers in wrong.items():
        first = numbers[0]
        more = f" and those of {len(numbers) - 1} more" if numbers[1:] else ""
        best, _ = allowed.get(first, ((NORMAL,), ()))
        what = f"the type of token {first}, {listed(metadata, TOKENS)[first]!r:.60},{more} is another"
        yield Finding(LEVEL, TYPES, what, _named(best[0]), _named(types[first]), grade)


def _allowed(expected: Tokens, vocab: int) -> dict[int, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return by token the types that are right, and those that converters have given it to no one's harm.

    A token that is added and not marked special is looked for in a text as either type; whether it looks special
    decides it in newer converters. An id without a token is never seen.
    """
    holes = set(range(vocab)) - set(expected.ids.values())
    either = ((CONTROL, USER_DEFINED), ())
    found: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = dict.fromkeys(
        holes, ((UNUSED, CONTROL, USER_DEFINED), (NORMAL,))
    )
    return found | {number: ((CONTROL,), ()) if special else either for number, special in expected.added.items()}


def _named(kind: Any) -> str:
    return f"{kind} ({NAMES.get(kind, 'unknown')})" if type(kind) is int else repr(kind)


def against_file(reference: Mapping[str, Any], metadata: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what the candidate's vocabulary says otherwise than another GGUF file's."""
    for key in (TOKENS, MERGES, TYPES):
        yield from first_difference(key, listed(reference, key), listed(metadata, key))


def listed(metadata: Mapping[str, Any], key: str) -> Sequence[Any]:
    """Return an array of the metadata; an empty one for anything else, which is then too short."""
    found = metadata.get(key)
    return found if isinstance(found, Sequence) and not isinstance(found, str) else ()


def first_difference(key: str, expected: Sequence[Any], found: Sequence[Any]) -> Iterator[Finding]:
    """Yield the first entry of an array that is another."""
    if len(expected) != len(found):
        yield Finding(LEVEL, key, "is wrong", f"{len(expected)} entries", len(found))
        return
    for number, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        if ours != theirs and not same(ours, theirs):
            what = f"entry {number} is another"
            yield Finding(LEVEL, key, what, repr(ours) if isinstance(ours, str) else short(ours), repr(theirs))
            return
