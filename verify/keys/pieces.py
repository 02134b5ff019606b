"""Whether a file's pre-tokenizer cuts texts as the reference's tokenizer.json does, tried on a text of many scripts."""

from __future__ import annotations

import json
from functools import cache
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from gguf_mla.text import encoders, ranks
from gguf_mla.text.splitting import SPLITTINGS
from verify.findings import Finding, Grade
from verify.keys.expected import LEVEL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf_mla.sources.tokenizer_files import TokenizerFiles

KEY = "tokenizer.ggml.pre"
# Digits, contractions, capitals, marks, spaces before and after lines, and letters that classes leave out or take in.
PROBE = (
    "It's 1234567 don't DON'T we'll 3.14, x=y+z; #tag @you $5 foo_bar(baz) {a: [b]}\n\n  def f(x):\n\treturn x  \r\n"
    "你好世界，2024年！ テスト　한국어 café e\u0301t\xe9 naïve Привет მისალმება שלום ½ Ⅷ — “quoted” …  a\t\tb   \n"
    "HTTPServer iPhone word's   three   spaces!?!? HTTP中文abc漢字Def a//\nb!/\r\n"
    " \u0939\u093f\u0928\u094d\u0926\u0940 ไทย 👍🏽 end "
)
MOST_BYTES = 192  # of 256, which a small vocabulary of bytes may lack some of


def compare(files: TokenizerFiles, name: Any) -> Iterator[Finding]:
    """Yield what is wrong with the pre-tokenizer that a file names; `name` is None where it names none."""
    if name is None:
        what = "is missing: llama.cpp then cuts texts as no model of this family does"
        yield Finding(LEVEL, KEY, what, "the name of a pre-tokenizer", "nothing")
        return
    if not encoders.installed():
        yield _untold("was not compared", name, "pip install tokenizers would tell")
        return
    if has_lost_it(files.tokenizer):
        why = "the reference's tokenizer.json has lost its pre_tokenizer: it cuts no text into bytes"
        yield _untold(f"was not compared: {why}", name, "That of the original model would tell")
        return
    try:
        expected = _pieces(_reference(files))
    except BaseException as error:  # the library raises bare Exceptions, and panics, which are no Exceptions
        if isinstance(error, MemoryError | KeyboardInterrupt | SystemExit):
            raise
        yield _untold(f"was not compared: the reference's cannot be run ({error!s:.120})", name, "A sound one would")
        return
    yield from _judge(expected, name)


def compare_names(expected: Any, found: Any) -> Iterator[Finding]:
    """Yield what to say of a file whose pre-tokenizer has another name than that of another GGUF file."""
    if expected == found:
        return
    known = {expected, found} <= SPLITTINGS.keys() if isinstance(found, str) and isinstance(expected, str) else False
    alike = known and SPLITTINGS[str(expected)].steps == SPLITTINGS[str(found)].steps
    what, grade = ("has another name that cuts texts alike", Grade.DIFFERS) if alike else ("is wrong", Grade.WRONG)
    wanted, there = ("nothing" if name is None else name for name in (expected, found))
    yield Finding(LEVEL, KEY, what, wanted, there, grade)


def has_lost_it(tokenizer: dict[str, Any] | None) -> bool:
    """Whether a vocabulary of bytes has a pre-tokenizer that makes none, as after saving with some versions."""
    if tokenizer is None or "ByteLevel" in json.dumps(tokenizer.get("pre_tokenizer")):
        return False
    held = sum(character in tokenizer["model"]["vocab"] for character in ranks.byte_values())
    return held > MOST_BYTES


def _judge(expected: list[str], name: Any) -> Iterator[Finding]:
    fitting = [known for known in SPLITTINGS if _cut(known) == expected]
    if name in fitting:
        return
    if isinstance(name, str) and name in SPLITTINGS:
        ours, theirs = next(pair for pair in zip_longest(expected, _cut(name)) if pair[0] != pair[1])
        wanted = f"{ours!r}, as {fitting[0]} does" if fitting else repr(ours)
        yield Finding(LEVEL, KEY, f"{name} cuts texts otherwise than the reference", wanted, repr(theirs))
    elif fitting:
        yield Finding(LEVEL, KEY, "is not a name that cuts texts as the reference does", " or ".join(fitting), name)
    else:
        yield _untold("how it cuts texts is not known here", name, "Ids from llama.cpp and from the reference would")


def _untold(what: str, name: Any, remedy: str) -> Finding:
    return Finding(LEVEL, KEY, what, found=name, grade=Grade.CANNOT_TELL, remedy=remedy)


def _reference(files: TokenizerFiles) -> Any:
    from tokenizers import Tokenizer, models  # noqa: PLC0415 - optional

    if files.tokenizer is None:
        return encoders.splitter((ranks.SPLIT,))
    without_tokens = json.loads(Tokenizer(models.BPE()).to_str())  # the section alone is wanted, not 128k tokens
    section = {"pre_tokenizer": files.tokenizer.get("pre_tokenizer")}
    return Tokenizer.from_str(json.dumps(without_tokens | section)).pre_tokenizer


@cache
def _cut(name: str) -> list[str]:
    return _pieces(encoders.splitter(SPLITTINGS[name].steps))


def _pieces(splitter: Any) -> list[str]:
    return [piece for piece, _ in splitter.pre_tokenize_str(PROBE)]
