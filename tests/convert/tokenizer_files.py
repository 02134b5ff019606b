"""The files of a tiny tokenizer, and what becomes of them."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest

from convert.tokenizer.metadata import tokenizer_metadata
from gguf_mla.errors import InputError
from gguf_mla.sources.folder import LocalFolder
from gguf_mla.sources.tokenizer_files import read_tokenizer
from tests.support import hub

if TYPE_CHECKING:
    from pathlib import Path

    from convert.tokenizer.pretokenizers import PreTokenizer
    from gguf_mla.container.values import Value
    from gguf_mla.families.base import Family

Json = dict[str, Any]

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
LETTERS = {"a": 3, "b": 4, "c": 5, "Ġ": 6, "ab": 7, "Ġab": 8}
V3 = json.loads((hub.BUNDLED / "tokenizer.json").read_text(encoding="utf-8"))["pre_tokenizer"]


def added(number: int, content: str, *, special: bool = False, normalized: bool = True) -> Json:
    flags = {"special": special, "normalized": normalized, "lstrip": False, "rstrip": False, "single_word": False}
    return {"id": number, "content": content, **flags}


def small() -> dict[str, Json]:
    """The files of a nine-token tokenizer."""
    return {
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": [added(0, BOS, special=True), added(1, EOS, special=True), added(9, "<｜User｜>")],
            "normalizer": None,
            "pre_tokenizer": deepcopy(V3),
            "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "vocab": {BOS: 0, EOS: 1, **LETTERS}, "merges": ["a b", "Ġ ab"]},
        },
        "tokenizer_config.json": {
            "bos_token": BOS,
            "eos_token": {"content": EOS},
            "tokenizer_class": "LlamaTokenizerFast",
        },
        "config.json": {"model_type": "deepseek_v3"},
    }


def write(directory: Path, files: dict[str, Json]) -> Path:
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return directory


def converted(
    directory: Path, size: int = 12, pre: str | None = None, family: Family | None = None
) -> tuple[dict[str, Value], list[str]]:
    """What the files of a directory become."""
    return tokenizer_metadata(read_tokenizer(LocalFolder(directory)), size, pre, family)


def convert(
    directory: Path, files: dict[str, Json], size: int = 12, pre: str | None = None, family: Family | None = None
) -> dict[str, Any]:
    metadata, _ = converted(write(directory, files), size, pre, family)
    return {key.removeprefix("tokenizer.ggml."): value.data for key, value in metadata.items()}


def warnings(directory: Path, files: dict[str, Json], family: Family | None = None) -> str:
    return " ".join(converted(write(directory, files), family=family)[1])


def refusal(directory: Path, files: dict[str, Json], size: int = 12, pre: str | None = None) -> str:
    with pytest.raises(InputError) as error:
        converted(write(directory, files), size, pre)
    assert error.value.status == 2
    return str(error.value)


def judged_section(entry: PreTokenizer) -> Json:
    """The entry's pre_tokenizer section as the `tokenizers` library writes it, having compiled every expression."""
    from tokenizers import Regex, Tokenizer, models
    from tokenizers import pre_tokenizers as judge

    splits = [judge.Split(Regex(pattern), "isolated") for pattern in entry.patterns]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = judge.Sequence([*splits, judge.ByteLevel(add_prefix_space=False, use_regex=False)])
    section: Json = json.loads(tokenizer.to_str())["pre_tokenizer"]
    return section
