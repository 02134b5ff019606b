"""Special tokens, what is added to a text, and chat templates: what a checkpoint's files say of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gguf_mla.sources.tokenizer_files import DEFAULT
from gguf_mla.sources.vocabulary import content_of
from verify.findings import Finding, Grade
from verify.keys.expected import LEVEL, REQUIRED, Expected
from verify.keys.vocabulary import PREFIX, TOKENS, listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gguf_mla.sources.tokenizer_files import TokenizerFiles
    from verify.keys.vocabulary import Tokens

KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "cls": "cls_token_id",
}
SYNONYMS = {"bos": "cls", "eos": "sep"}  # of a configuration that names no such token
OTHERS = 11  # what llama.cpp takes for the bos and eos of a byte-level vocabulary that names none
UNUSED = ("unk", "sep", "pad", "mask", "cls")
NOT_USED = "llama.cpp does nothing with it in a byte-level vocabulary"
FIM = re.compile(r"tokenizer\.ggml\.(fim_\w+|prefix|suffix|middle)_token_id")
FIM_TEXT = re.compile(r"fim|prefix|suffix|middle|repo|file_sep|hole|<PRE>|<SUF>|<MID>|<EOT>", re.IGNORECASE)
# Tokens that llama.cpp takes for the end of an answer by their text.
ENDS = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<｜end▁of▁sentence｜>"}
)
TEMPLATE = "tokenizer.chat_template"
TEMPLATES = "tokenizer.chat_templates"


def ids(files: TokenizerFiles, tokens: Tokens, published: Mapping[str, str]) -> dict[str, Expected]:
    """Return the special tokens' keys; `published`: what the model's makers call them, whatever the files say."""
    keys = {}
    for kind, key in KEYS.items():
        number = _id(kind, files, tokens, published)
        if kind in UNUSED:
            keys[PREFIX + key] = Expected(number, None, Grade.DIFFERS, NOT_USED, optional=True)
        elif number is not None:
            absent = OTHERS if kind in SYNONYMS else REQUIRED
            keys[PREFIX + key] = Expected(number, absent, note=_quoted(number, tokens))
        elif kind in SYNONYMS:
            keys[PREFIX + key] = Expected(None, grade=Grade.DIFFERS, note="the checkpoint names no such token")
    return keys


def _quoted(number: int, tokens: Tokens) -> str:
    content = next((content for content, known in tokens.ids.items() if known == number), None)
    return "" if content is None else f"it is {content!r:.60}"


def _id(kind: str, files: TokenizerFiles, tokens: Tokens, published: Mapping[str, str]) -> int | None:
    config = files.config
    names = [published.get(kind), *(content_of(config.get(f"{name}_token")) for name in (kind, SYNONYMS.get(kind, "")))]
    if kind == "bos" and not any(names[1:]):
        names.append(template_token(files.tokenizer or {}, 0))
    known = [tokens.ids[name] for name in filter(None, names) if name in tokens.ids]
    return known[0] if known else next(iter(_stated(kind, files)), None)


def _stated(kind: str, files: TokenizerFiles) -> Iterator[int]:
    """Yield the ids that the configurations state for a kind; of a list the first comes first."""
    text = files.model.get("text_config")
    for source in (files.model, text if isinstance(text, dict) else {}, files.generation):
        value = source.get(f"{kind}_token_id")
        for number in value if isinstance(value, list) else [value]:
            if type(number) is int and number >= 0:
                yield number


def others(
    files: TokenizerFiles, tokens: Tokens, metadata: Mapping[str, Any], known: Mapping[str, Expected]
) -> Iterator[Finding]:
    """Yield the tokens that a file names and that nothing in the checkpoint explains, but for the `known` keys."""
    ends = {number for kind in ("eos", "eot", "eom") for number in _stated(kind, files)}
    ends |= {number for content, number in tokens.ids.items() if content in ENDS}
    texts = listed(metadata, TOKENS)
    for key, number in metadata.items():
        if key in known:
            continue
        if key in (PREFIX + KEYS["eot"], PREFIX + KEYS["eom"]):
            right, what = number in ends, "is a token that ends no answer in the checkpoint"
        elif FIM.fullmatch(key):
            text = texts[number] if type(number) is int and 0 <= number < len(texts) else ""
            right, what = bool(FIM_TEXT.search(text)), "is a token that marks nothing to be filled in"
        else:
            continue
        if not right:
            yield Finding(LEVEL, key, what, found=number)


def is_other(key: str) -> bool:
    """Whether a key is one that `others` looks at."""
    return key in (PREFIX + KEYS["eot"], PREFIX + KEYS["eom"]) or bool(FIM.fullmatch(key))


def added(files: TokenizerFiles, bos_first: bool, has_bos: bool) -> dict[str, Expected]:
    """Return whether bos and eos are added to a text, where the checkpoint says so.

    `bos_first`: the makers' own prompts begin with it, whatever the files say.
    """
    stated = {f"add_{kind}_token": files.config.get(f"add_{kind}_token") for kind in ("bos", "eos")}
    if bos_first:
        stated["add_bos_token"] = True
    if not has_bos:
        stated.pop("add_bos_token")
    return {
        PREFIX + key: Expected(value, absent=False, optional=True)
        for key, value in stated.items()
        if isinstance(value, bool)
    }


def template_token(tokenizer: Mapping[str, Any], place: int) -> str | None:
    """Return the special token that a post-processor's template puts first (0) or last (-1) in a text."""
    section = tokenizer.get("post_processor")
    inner = section.get("processors", [section]) if isinstance(section, dict) else []
    for processor in inner if isinstance(inner, list) else []:
        single = processor.get("single") if isinstance(processor, dict) else None
        piece = single[place] if isinstance(single, list) and single else None
        special = piece.get("SpecialToken") if isinstance(piece, dict) else None
        if isinstance(special, dict) and isinstance(special.get("id"), str):
            return str(special["id"])
    return None


def templates(files: TokenizerFiles) -> dict[str, Expected]:
    """Return the keys of the chat templates: those of .jinja files, else of tokenizer_config.json, else of its own."""
    sources = [files.templates, *(_by_name(source.get("chat_template")) for source in (files.config, files.stated))]
    stated = next(filter(None, sources), {})
    plain = {re.sub(r"[^A-Za-z0-9]", "_", name): text for name, text in stated.items() if name}
    note = "llama.cpp writes chats by it"
    more = tuple(source[DEFAULT] for source in sources if DEFAULT in source)  # converters do not agree on the order
    keys = {
        TEMPLATE if name == DEFAULT else f"{TEMPLATE}.{name}": Expected(
            text, note=note, alike=more if name == DEFAULT else ()
        )
        for name, text in plain.items()
    }
    named = sorted(plain.keys() - {DEFAULT})
    return keys | ({TEMPLATES: Expected(named, REQUIRED, Grade.DIFFERS)} if named else {})


def _by_name(stated: Any) -> dict[str, str]:
    if isinstance(stated, str):
        return {DEFAULT: stated}
    entries = [entry for entry in (stated if isinstance(stated, list) else [stated]) if isinstance(entry, dict)]
    pairs = [(entry.get("name"), entry.get("template")) for entry in entries]
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
