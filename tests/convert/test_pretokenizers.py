"""Recognised pre-tokenizers: compiled by the `tokenizers` library, run by a real engine."""

from __future__ import annotations

import json
import shutil
import unicodedata
from copy import deepcopy
from typing import TYPE_CHECKING

import pytest

from convert.tokenizer import pretokenizers
from gguf_mla.errors import InputError
from tests.convert.tokenizer_files import Json, added, convert, judged_section, refusal, small
from tests.support import command, hub
from tests.support.judges import TokenizingEngine
from tests.support.texts import DIGITS, TEXTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("entry", pretokenizers.PRE_TOKENIZERS, ids=lambda entry: entry.name)
def test_each_known_section_is_recognised(tmp_path: Path, entry: pretokenizers.PreTokenizer) -> None:
    assert pretokenizers.recognise(judged_section(entry), tmp_path).name == entry.name


@pytest.mark.parametrize("name", ["deepseek-llm", "deepseek-coder"])
def test_the_digits_step_of_the_real_files(tmp_path: Path, name: str) -> None:
    section = judged_section(pretokenizers.named(name))
    section["pretokenizers"][-2] = {"type": "Digits", "individual_digits": True}
    assert pretokenizers.recognise(section, tmp_path).name == name


def renested(section: Json) -> Json:
    first, *rest = section["pretokenizers"]
    return {"type": "Sequence", "pretokenizers": [first, {"type": "Sequence", "pretokenizers": rest}]}


def respelled(section: Json) -> Json:
    changed = deepcopy(section)
    for step in changed["pretokenizers"][:-1]:
        text = step["pattern"]["Regex"].replace("\r", "\\r").replace("\n", "\\n")
        step["pattern"]["Regex"] = text.replace("\u3040", "\\u3040").replace("\u1f7d", "\\x{1f7d}")
    return changed


def retrimmed(section: Json) -> Json:
    changed = deepcopy(section)
    changed["pretokenizers"][-1]["trim_offsets"] = not changed["pretokenizers"][-1]["trim_offsets"]
    return changed


@pytest.mark.parametrize("change", [renested, respelled, retrimmed])
@pytest.mark.parametrize("entry", pretokenizers.PRE_TOKENIZERS, ids=lambda entry: entry.name)
def test_spelling_does_not_matter(
    tmp_path: Path, entry: pretokenizers.PreTokenizer, change: Callable[[Json], Json]
) -> None:
    assert pretokenizers.recognise(change(judged_section(entry)), tmp_path).name == entry.name


def dropped(section: Json) -> None:
    section["pretokenizers"].pop(0)


def prefixed(section: Json) -> None:
    section["pretokenizers"][-1]["add_prefix_space"] = True


def resplit(section: Json) -> None:
    section["pretokenizers"][-1]["use_regex"] = True


def merged(section: Json) -> None:
    section["pretokenizers"][0]["behavior"] = "MergedWithPrevious"


def shortened(section: Json) -> None:
    section["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}{1,2}"


@pytest.mark.parametrize("change", [dropped, prefixed, resplit, merged, shortened])
def test_another_meaning_is_not_recognised(tmp_path: Path, change: Callable[[Json], None]) -> None:
    files = small()
    change(files["tokenizer.json"]["pre_tokenizer"])
    said = refusal(tmp_path, files)
    assert "--pre NAME" in said
    assert "deepseek-v3, deepseek-llm, deepseek-coder, kimi-k2, glm4" in said
    assert convert(tmp_path, files, pre="llama-bpe")["pre"] == "llama-bpe"


def test_composed_letters_are_other_ranges(tmp_path: Path) -> None:
    section = judged_section(pretokenizers.named("deepseek-llm"))
    text = section["pretokenizers"][1]["pattern"]["Regex"]
    section["pretokenizers"][1]["pattern"]["Regex"] = unicodedata.normalize("NFC", text)
    with pytest.raises(InputError):
        pretokenizers.recognise(section, tmp_path)


def test_no_letters_of_deepseek_llm_are_composed_by_an_editor() -> None:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    letters = Split(Regex(pretokenizers.named("deepseek-llm").patterns[1]), "isolated")
    pieces = [piece for piece, _ in letters.pre_tokenize_str("snake_case \u1f7d\u212a")]
    assert pieces == ["snake", "_", "case", " \u1f7d\u212a"]


def test_recognition_does_not_depend_on_the_vocabulary(tmp_path: Path) -> None:
    assert convert(tmp_path, small())["pre"] == "deepseek-v3"


def test_a_glm_has_the_ids_its_engine_wants(tmp_path: Path) -> None:
    files = small()
    names = ["[gMASK]", "<|user|>", "<|endoftext|>", "<|observation|>"]
    files["tokenizer.json"]["added_tokens"] += [added(10 + i, name, special=True) for i, name in enumerate(names)]
    files["tokenizer.json"]["pre_tokenizer"] = judged_section(pretokenizers.named("glm4"))
    files["tokenizer_config.json"] = {"eos_token": "<|endoftext|>"}
    written = convert(tmp_path, files, size=14)
    kinds = ("bos", "eot", "unknown", "eom", "eos")
    assert [written[f"{kind}_token_id"] for kind in kinds] == [10, 11, 12, 13, 12]


@pytest.mark.parametrize("pre", ["", "a b", "../x", "-", "x" * 65])
def test_a_name_must_be_one(tmp_path: Path, pre: str) -> None:
    assert "Known names are deepseek-v3" in refusal(tmp_path, small(), pre=pre)


@pytest.mark.engine
@pytest.mark.usefixtures("judges")
@pytest.mark.parametrize("entry", pretokenizers.PRE_TOKENIZERS, ids=lambda entry: entry.name)
def test_an_engine_tokenizes_as_the_tokenizers_library(tmp_path: Path, entry: pretokenizers.PreTokenizer) -> None:
    from tokenizers import Tokenizer

    directory = tmp_path / "checkpoint"
    shutil.copytree(hub.BUNDLED, directory)
    files = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    files["pre_tokenizer"] = judged_section(entry)
    (directory / "tokenizer.json").write_text(json.dumps(files), encoding="utf-8")
    command.convert(directory, tmp_path / "out.gguf", "BF16")
    judge, engine = Tokenizer.from_file(str(directory / "tokenizer.json")), TokenizingEngine(tmp_path / "out.gguf")
    # The bundled vocabulary joins digits, deepseek-llm's does not, and llama.cpp relies on that (see pretokenizers).
    texts = TEXTS if entry.name == "deepseek-llm" else TEXTS + DIGITS
    expected = {text: judge.encode(text, add_special_tokens=False).ids for text in texts}
    assert {text: engine.ids(text) for text in texts} == expected
    assert engine.ids("x", special=True)[0] == 0, "bos is added, as tokenizer_config.json says"
