"""What a reference states of the keys that do not describe the model: its checkpoint's files, or its own metadata."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from verify.findings import Finding, Grade
from verify.keys import general, pieces, special, vocabulary
from verify.keys.expected import LEVEL, REQUIRED, Expected, short
from verify.keys.known import PROVENANCE, honoured, inert
from verify.keys.vocabulary import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gguf_mla.sources.config import Config
    from gguf_mla.sources.tokenizer_files import TokenizerFiles
    from verify.keys.vocabulary import Tokens
    from verify.published import Published

ARRAYS = (vocabulary.TOKENS, vocabulary.TYPES, vocabulary.MERGES, pieces.KEY)  # looked at entry by entry
MODEL = PREFIX + "model"
CONTEXT = "context_length"
ADDED = (PREFIX + "add_bos_token", PREFIX + "add_eos_token")
LONGEST = "llama.cpp takes it for the longest context, and unless its user says otherwise for the context"


class Statement(Protocol):
    """What a reference states."""

    def keys(self, architecture: str) -> dict[str, Expected]:
        """Return what keys must say, by their full names in a file of this architecture."""

    def findings(self, metadata: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield what the vocabulary of a file has wrong."""

    def settles(self, key: str) -> bool:
        """Whether `findings` has looked at a key, or the reference leaves open what it says."""


@dataclass(frozen=True)
class OfCheckpoint:
    """A checkpoint's configuration and tokenizer files."""

    config: Config
    files: TokenizerFiles
    published: Published
    vocab: int

    @cached_property
    def _tokens(self) -> Tokens:
        """The vocabulary; InputError for files that are damaged."""
        return vocabulary.tokens_of(self.files)

    @cached_property
    def _ids(self) -> dict[str, Expected]:
        return special.ids(self.files, self._tokens, self.published.specials)

    def keys(self, architecture: str) -> dict[str, Expected]:
        """Return the keys that config.json, generation_config.json and the tokenizer's files settle."""
        context = self.config.integer("max_position_embeddings", 0)
        has_bos = self._ids[PREFIX + special.KEYS["bos"]].value is not None
        return {
            **general.keys(),
            **general.sampling(self.files.generation),
            **({f"{architecture}.{CONTEXT}": Expected(context, note=LONGEST)} if context else {}),
            MODEL: Expected("gpt2", note="llama.cpp reads the tokens as those of another kind of vocabulary"),
            **self._ids,
            **special.added(self.files, self.published.bos_first, has_bos),
            **special.templates(self.files),
        }

    def findings(self, metadata: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield what the candidate's vocabulary has wrong."""
        yield from vocabulary.against_files(self._tokens, metadata, self.vocab)
        yield from pieces.compare(self.files, metadata.get(pieces.KEY))
        yield from special.others(self.files, self._tokens, metadata, self._ids)
        for key in ADDED:
            if not isinstance(metadata.get(key, False), bool):
                yield Finding(LEVEL, key, "is wrong", "true or false", short(metadata[key]))

    def settles(self, key: str) -> bool:
        """Whether `findings` has looked at a key, or the files leave open what it says."""
        scripted = self.published.scripted and key == special.TEMPLATE
        return key in (*ARRAYS, *ADDED) or special.is_other(key) or scripted


@dataclass(frozen=True)
class OfFile:
    """The metadata of another GGUF file."""

    metadata: Mapping[str, Any]
    architecture: str

    def keys(self, architecture: str) -> dict[str, Expected]:
        """Return what the reference's own keys say, as an engine takes them; not where the file comes from."""
        own, found = f"{self.architecture}.", general.keys()
        for key, value in self.metadata.items():
            name = key.removeprefix(own)
            read = honoured(name)
            if key in ARRAYS or (read is None and key.startswith(PROVENANCE)):
                continue
            full = f"{architecture}.{name}" if name != key else key
            found[full] = _stated(name, value)
        return found

    def findings(self, metadata: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield what the candidate's vocabulary says otherwise."""
        yield from vocabulary.against_file(self.metadata, metadata)
        yield from pieces.compare_names(self.metadata.get(pieces.KEY), metadata.get(pieces.KEY))

    def settles(self, key: str) -> bool:
        """Whether `findings` has looked at a key."""
        return key in ARRAYS


def _stated(name: str, value: Any) -> Expected:
    """Return what a key of a GGUF file asks of another's."""
    read = honoured(name)
    if name in (CONTEXT, MODEL):
        return Expected(value, note=LONGEST if name == CONTEXT else "")
    if read is None:
        note = inert(name) or "no engine known here reads it"
        return Expected(value, REQUIRED, Grade.DIFFERS, note)
    absent = read.neutral[0] if read.neutral else REQUIRED
    missing = Grade.DIFFERS if name.startswith(general.SAMPLING) else None
    return Expected(value, absent, optional=True, missing=missing)
