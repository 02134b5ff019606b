"""The tokenizer section of the metadata, from a checkpoint's own files and without any tokenizer library.

`tokenizer.json` (or `tiktoken.model`) gives tokens, merges and the pre-tokenizer, `tokenizer_config.json` the special
tokens, whether bos is added, and the chat template; `config.json` and `generation_config.json` give ids that these do
not name. Why each value is as it is, and where llama.cpp's converter differs, stands in docs/tokenizer.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convert.tokenizer import pretokenizers
from convert.tokenizer.chat_templates import chat_templates
from convert.tokenizer.tiktoken import tokenizer_of_ranks
from convert.tokenizer.vocabulary import token_table
from gguf_mla.container.values import Kind, Value, array, boolean, string, u32
from gguf_mla.errors import EDITED, InputError
from gguf_mla.sources.vocabulary import Vocabulary, content_of, read_vocabulary

if TYPE_CHECKING:
    from pathlib import PurePath

    from convert.tokenizer.pretokenizers import PreTokenizer
    from gguf_mla.families.base import Family
    from gguf_mla.sources.tokenizer_files import TokenizerFiles

# The kinds of special tokens in the order they are written, and their keys ("seperator" is GGUF's own spelling).
KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
}

FIRST, LAST = 0, -1

# A kind that a configuration leaves open is taken from its BERT-time synonym.
SYNONYMS = {"bos": "cls", "eos": "sep"}


def tokenizer_metadata(
    files: TokenizerFiles, vocab_size: int, pre: str | None = None, family: Family | None = None
) -> tuple[dict[str, Value], list[str]]:
    """Return the `tokenizer.*` metadata of a checkpoint in writing order, and warnings as sentences.

    vocab_size   the rows of the embedding; exactly so many tokens are written
    pre          the value of `tokenizer.ggml.pre`; None recognises it from tokenizer.json
    family       of the model, which knows some special tokens better than the files

    Raises InputError for a tokenizer other than byte-level BPE, an unknown pre-tokenizer, and files that are damaged or
    contradict each other.
    """
    tokenizer, warnings = _tokenizer(files, vocab_size, pre)
    splitter, damage = pretokenizers.chosen(tokenizer, files.path, pre)
    vocabulary = read_vocabulary(tokenizer, files.config, files.path)
    table, found = _table(vocabulary, vocab_size, splitter)
    warnings = [
        *found,
        *warnings,
        *damage,
        *vocabulary.notes,
        *_normalizer_warning(tokenizer),
        *_name_warning(splitter),
    ]
    special = _Special(files, tokenizer, vocabulary, vocab_size, splitter, family.bos_first if family else "", warnings)
    ids = special.metadata()
    templates, found = chat_templates(files, family.template if family else "")
    metadata = table | ids | templates | (_named_by(family, table["tokenizer.ggml.tokens"].data) if family else {})
    _check_text(metadata, files.path.parent)
    return metadata, warnings + found


def _tokenizer(files: TokenizerFiles, vocab_size: int, pre: str | None) -> tuple[dict[str, Any], list[str]]:
    if files.tokenizer is None:
        return tokenizer_of_ranks(files, vocab_size, pre)
    return files.tokenizer, []


def _table(vocabulary: Vocabulary, vocab_size: int, splitter: PreTokenizer) -> tuple[dict[str, Value], list[str]]:
    tokens, types, warnings = token_table(vocabulary, vocab_size)
    return {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(splitter.name),
        "tokenizer.ggml.tokens": array(Kind.STRING, tokens),
        "tokenizer.ggml.token_type": array(Kind.I32, types),
        "tokenizer.ggml.merges": array(Kind.STRING, vocabulary.merges),
    }, warnings


def _named_by(family: Family, tokens: list[str]) -> dict[str, Value]:
    ids = {role: tokens.index(text) for role, text in family.specials.items() if text in tokens}
    return {f"tokenizer.ggml.{KEYS[role]}": u32(number) for role, number in ids.items()}


def _name_warning(splitter: PreTokenizer) -> list[str]:
    if splitter.patterns:
        return []
    known = pretokenizers.known_names()
    return [f"--pre {splitter.name} is not among the names known here ({known}), and maybe not to llama.cpp either."]


def _normalizer_warning(tokenizer: dict[str, Any]) -> list[str]:
    normalizer = tokenizer.get("normalizer")
    if not normalizer or (isinstance(normalizer, dict) and not normalizer.get("normalizers", [normalizer])):
        return []
    kind = normalizer.get("type") if isinstance(normalizer, dict) else normalizer
    return [f"tokenizer.json normalizes text ({kind}) before splitting it; GGUF cannot say so, and llama.cpp will not."]


@dataclass
class _Special:
    """Finds the special tokens' ids and whether they are added to a text."""

    files: TokenizerFiles
    tokenizer: dict[str, Any]
    vocabulary: Vocabulary
    vocab_size: int
    splitter: PreTokenizer
    bos_first: str
    warnings: list[str]
    ids: dict[str, int] = field(default_factory=dict)

    def metadata(self) -> dict[str, Value]:
        """Return the ids, and add_bos_token and add_eos_token, which are always stated."""
        self.ids = {kind: number for kind in KEYS if (number := self._id(kind)) is not None}
        return {f"tokenizer.ggml.{KEYS[kind]}": u32(number) for kind, number in self.ids.items()} | {
            "tokenizer.ggml.add_bos_token": boolean(self._adds_bos()),
            "tokenizer.ggml.add_eos_token": boolean(self._adds("eos", LAST) or False),
        }

    def _id(self, kind: str) -> int | None:
        for content in self._names(kind):
            number = self.vocabulary.find(content)
            if number is not None:
                return number
            self.warnings.append(
                f"tokenizer_config.json names {content!r} as {kind} token, but the vocabulary has no such token."
            )
        stated = self._stated_id(kind)
        return self._usual_id(kind) if stated is None else stated

    def _names(self, kind: str) -> list[str]:
        config = self.files.config
        name = content_of(config.get(f"{kind}_token")) or content_of(config.get(f"{SYNONYMS.get(kind, '-')}_token"))
        if name is None and kind == "bos":
            name = self._template_token(FIRST)
        return [name] if name else []

    def _stated_id(self, kind: str) -> int | None:
        """Return the first id that config.json, its text model, or generation_config.json states for a kind."""
        text = self.files.model.get("text_config")
        model, generation = ("config.json", self.files.model), ("generation_config.json", self.files.generation)
        for name, source in (model, ("config.json", text if isinstance(text, dict) else {}), generation):
            value = source.get(f"{kind}_token_id")
            number = value[0] if isinstance(value, list) and value else value
            if type(number) is int and number != -1:  # -1 is how some configurations write "none"
                return self._in_range(number, f"{kind}_token_id", name)
        return None

    def _in_range(self, number: int, key: str, name: str) -> int:
        if not 0 <= number < self.vocab_size:
            file = self.files.path.with_name(name)
            raise InputError(
                f"{key} is not a token of the vocabulary",
                file=file,
                expected=f"0 to {self.vocab_size - 1}",
                found=f"{number!r:.80}",
                remedy="Correct it",
            )
        return number

    def _usual_id(self, kind: str) -> int | None:
        name = self.splitter.special.get(kind)
        return self.vocabulary.find(name) if name else None

    def _adds_bos(self) -> bool:
        stated = self._adds("bos", FIRST)
        if self.bos_first and stated is False:
            self.warnings.append(
                "tokenizer_config.json says add_bos_token is false; true is written: "
                f"{self.bos_first} starts texts with it."
            )
        adds = True if self.bos_first else self.splitter.adds_bos if stated is None else stated
        if adds and "bos" not in self.ids:
            self.warnings.append("The tokenizer has no bos token, so add_bos_token is written as false.")
        return adds and "bos" in self.ids

    def _adds(self, kind: str, place: int) -> bool | None:
        """Return what the files say about adding a token at one end of a text, None when they say nothing."""
        stated = self.files.config.get(f"add_{kind}_token")
        token = self._template_token(place)
        template = None if token is None else self.vocabulary.find(token) == self.ids.get(kind, -1)
        if not isinstance(stated, bool):
            return template
        if template and not stated:
            self.warnings.append(
                f"tokenizer_config.json says add_{kind}_token is false, the post_processor of tokenizer.json adds the"
                " token all the same; false is written."
            )
        return stated

    def _template_token(self, place: int) -> str | None:
        """Return the special token that a template puts FIRST or LAST, "" for none; None without a template."""
        for processor in _processors(self.tokenizer.get("post_processor")):
            single = processor.get("single")
            if processor.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
                return _special_token(single[place])
        return None


def _processors(section: Any) -> list[dict[str, Any]]:
    listed = section.get("processors", [section]) if isinstance(section, dict) else []
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def _special_token(piece: Any) -> str:
    special = piece.get("SpecialToken") if isinstance(piece, dict) else None
    name = special.get("id") if isinstance(special, dict) else None
    return name if isinstance(name, str) else ""


def _check_text(metadata: dict[str, Value], place: PurePath) -> None:
    r"""Refuse text that no GGUF can hold: JSON may write half a character (`\ud800`), UTF-8 cannot."""
    for key, value in metadata.items():
        if Kind.STRING in (value.kind, value.item):
            text = value.data if value.kind == Kind.STRING else "".join(value.data)
            if not _is_unicode(text):
                raise InputError(
                    f"{key} would hold a character that is not Unicode text (a lone surrogate)",
                    file=place,
                    remedy=EDITED,
                )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
