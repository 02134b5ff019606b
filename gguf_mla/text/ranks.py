"""A vocabulary in tiktoken's form: a line for each token, its bytes in base64 and its rank, which is also its id.

The lower the rank of what two neighbours make, the earlier they are joined. Source: the package tiktoken.
"""

from __future__ import annotations

import base64
import binascii
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from gguf_mla.errors import EDITED, InputError
from gguf_mla.files.json_text import MAX_BYTES

if TYPE_CHECKING:
    from gguf_mla.files.readable import Readable

FILE = "tiktoken.model"
NEVER = 1 << 30  # the rank of a pair that is not a token

# The file does not say how a text is split into the pieces whose bytes are joined. This is how Kimi's code does it.
SPLIT = (
    r"[\p{Han}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Bpe(NamedTuple):
    """A vocabulary as byte-level BPE has it: ids by token, "a b" for each that two others make, and the others."""

    vocab: dict[str, int]
    merges: list[str]
    unreachable: list[str]


def bpe_of(ranks: dict[bytes, int]) -> Bpe:
    """Return the tokens in GPT-2's alphabet, and the merges that their ranks amount to, in their order."""
    characters = {byte: character for character, byte in byte_values().items()}
    text = {token: "".join(map(characters.__getitem__, token)) for token in ranks}
    pairs = {token: split(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1}
    merges = [f"{text[pair[0]]} {text[pair[1]]}" for pair in pairs.values() if pair]
    return Bpe(
        {text[token]: rank for token, rank in ranks.items()},
        merges,
        [text[token] for token, pair in pairs.items() if pair is None],
    )


@cache
def byte_values() -> dict[str, int]:
    """Return the byte that each character of byte-level BPE stands for (GPT-2's alphabet, inverted)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def read_ranks(file: Readable) -> dict[bytes, int]:
    """Return every token's rank; InputError names a line without one, or a token or a rank that is there twice."""
    if file.size > MAX_BYTES:
        raise InputError("is larger than any vocabulary", file=file.name, expected=f"at most {MAX_BYTES} bytes")
    lines = file.read(0, file.size).tobytes().splitlines()
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        if line:
            token, rank = _entry(line, number, file.name)
            if ranks.setdefault(token, rank) != rank:
                raise InputError(f"line {number}: a token is there twice", file=file.name, found=repr(token))
    for token, rank in _clash(ranks):
        raise InputError(f"two tokens have rank {rank}", file=file.name, found=repr(token), remedy=EDITED)
    return ranks


def _entry(line: bytes, number: int, file: str) -> tuple[bytes, int]:
    encoded, _, rank = line.partition(b" ")
    try:
        token = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        token = b""
    if not token or not rank.isdigit() or len(rank) > 9:
        raise InputError(
            f"line {number} is not a token",
            file=file,
            expected="bytes in base64, a space, and a rank",
            found=f"{line!r:.80}",
            remedy="Download the file again",
        )
    return token, int(rank)


def _clash(ranks: dict[bytes, int]) -> list[tuple[bytes, int]]:
    """Return the first token whose rank another one has, if there is any."""
    seen: set[int] = set()
    for token, rank in ranks.items():
        if rank in seen:
            return [(token, rank)]
        seen.add(rank)
    return []


def split(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """Return the two tokens that a token is joined of, None when joining never leads to it.

    That is what joining its bytes, lowest rank first, comes to one step before: no other pair can be next to each other
    in a text, unless something reached across the token's ends, and then it is not there.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    pairs = [ranks.get(token[i : i + 2], NEVER) for i in range(len(token) - 1)]
    while len(parts) > 2:
        least = min(pairs)
        if least >= ranks[token]:
            return None
        at = pairs.index(least)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del pairs[at]
        if at > 0:
            pairs[at - 1] = ranks.get(parts[at - 1] + parts[at], NEVER)
        if at < len(pairs):
            pairs[at] = ranks.get(parts[at] + parts[at + 1], NEVER)
    return (parts[0], parts[1]) if len(parts) == 2 and all(part in ranks for part in parts) else None
