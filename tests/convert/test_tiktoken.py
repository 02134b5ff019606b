"""Kimi's vocabulary, tiktoken.model: what is made of it, judged by the package tiktoken."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_mla.errors import InputError
from gguf_mla.files.input import InputFile
from gguf_mla.text.ranks import read_ranks, split
from tests.convert import tokenizer_files
from tests.support import hub, tiktoken_files
from tests.support.command import convert, gguf_mla
from tests.support.damage import change_json
from tests.support.judges import TokenizingEngine
from tests.support.texts import DIGITS, TEXTS

if TYPE_CHECKING:
    from pathlib import Path

BASE = 2043  # ordinary tokens
SIZE = BASE + tiktoken_files.RESERVED


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    return tiktoken_files.ranks_of(hub.BUNDLED / "tokenizer.json")


@pytest.fixture
def files(tmp_path: Path, ranks: dict[bytes, int]) -> Path:
    tiktoken_files.write(tmp_path, ranks)
    return tmp_path


@pytest.fixture(scope="module")
def judge(ranks: dict[bytes, int]) -> Any:
    import tiktoken

    return tiktoken.Encoding(
        "kimi",
        pat_str="|".join(tiktoken_files.PATTERNS),
        mergeable_ranks=ranks,
        special_tokens=tiktoken_files.special_tokens(BASE),
    )


def converted(directory: Path, size: int = SIZE, pre: str | None = None) -> dict[str, Any]:
    metadata, _ = tokenizer_files.converted(directory, size, pre)
    return {key.removeprefix("tokenizer.ggml."): value.data for key, value in metadata.items()}


def test_the_real_merges_are_recovered_from_the_order_of_the_tokens() -> None:
    path = hub.tokenizer_directory("deepseek") / "tokenizer.json"
    alphabet = tiktoken_files.byte_of()
    merges = json.loads(path.read_text(encoding="utf-8"))["model"]["merges"]
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    expected = [tuple(bytes(map(alphabet.__getitem__, part)) for part in pair) for pair in pairs]
    ranks = tiktoken_files.ranks_of(path)
    # every third, which takes a third of the time; each is found for itself
    for first, second in expected[::3]:
        assert split(first + second, ranks) == (first, second)
    assert len(expected) == sum(len(token) > 1 for token in ranks)


def test_tokens_and_their_types(files: Path) -> None:
    found = converted(files)
    assert len(found["tokens"]) == SIZE
    special = {text: (number, found["token_type"][number]) for number, text in enumerate(found["tokens"])}
    assert special["[BOS]"] == (BASE, 3)
    assert special["<|tool_calls_section_begin|>"] == (BASE + 11, 3), "it looks special"
    assert special["<think>"] == (BASE + 22, 4), "it is not marked special, so it is printed"
    assert special[f"<|reserved_token_{BASE + 5}|>"] == (BASE + 5, 3)
    assert found["tokens"][:3] == ["!", '"', "#"]
    assert set(found["token_type"][:BASE]) == {1}
    named = {kind: found[f"{kind}_token_id"] - BASE for kind in ("bos", "eos", "unknown", "padding")}
    assert named == {"bos": 0, "eos": 1, "unknown": 254, "padding": 255}
    assert (found["model"], found["pre"], found["add_bos_token"]) == ("gpt2", "kimi-k2", False)
    assert "<|im_end|>" in found["tokenizer.chat_template"]


def test_ids_beyond_the_reserved_ones_are_padding(files: Path) -> None:
    assert converted(files, SIZE + 2)["tokens"][-3:] == ["[PAD]", f"[PAD{SIZE}]", f"[PAD{SIZE + 1}]"]


def test_a_tokenizer_json_comes_first(files: Path) -> None:
    (files / "tokenizer.json").write_bytes((hub.BUNDLED / "tokenizer.json").read_bytes())
    change_json(files / "tokenizer_config.json", lambda config: config.pop("added_tokens_decoder"))
    assert converted(files)["pre"] == "deepseek-v3"


TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\r\tabzABZ'sLL019_.,-(){}é你好日本한नि🚀")),
    max_size=40,
)


def test_joining_by_these_merges_gives_tiktokens_ids(files: Path, judge: Any) -> None:
    from tokenizers import Tokenizer, models

    from convert.tokenizer import pretokenizers

    found = converted(files)
    vocabulary = {text: number for number, text in enumerate(found["tokens"]) if found["token_type"][number] == 1}
    merges = [tuple(merge.split(" ")) for merge in found["merges"]]
    section = tokenizer_files.judged_section(pretokenizers.named("kimi-k2"))
    state = json.loads(Tokenizer(models.BPE(vocabulary, merges)).to_str()) | {"pre_tokenizer": section}
    ours = Tokenizer.from_str(json.dumps(state))

    @settings(max_examples=400, deadline=None)
    @given(TEXT)
    def check(text: str) -> None:
        assert ours.encode(text).ids == judge.encode_ordinary(text)

    check()


@pytest.mark.engine
@pytest.mark.usefixtures("judges")
def test_an_engine_tokenizes_as_tiktoken(judge: Any, tmp_path: Path) -> None:
    small = {"num_hidden_layers": 2, "n_routed_experts": 4, "num_experts_per_tok": 2}
    checkpoint = hub.write(tmp_path / "model", "kimi-int4", tokenizer="tiktoken", **small)
    convert(checkpoint, tmp_path / "out.gguf")
    assert gguf_mla("verify", checkpoint, tmp_path / "out.gguf", "--context", 64, "--chunks", 1, "--quiet").status == 0
    engine = TokenizingEngine(tmp_path / "out.gguf")
    chat = "<|im_user|>user<|im_middle|>2+2?<|im_end|><|im_assistant|><think>four</think>[EOS]"
    texts = [*TEXTS, *DIGITS, chat]
    expected = {text: judge.encode(text, allowed_special="all") for text in texts}
    assert {text: engine.ids(text) for text in texts} == expected
    assert engine.ids("x", special=True) == judge.encode("x"), "no bos is added"


def test_a_token_that_joining_never_leads_to_is_told(files: Path, ranks: dict[bytes, int]) -> None:
    more = ranks | {b"\x00\x01\x02": len(ranks)}
    tiktoken_files.write(files, more)
    metadata, said = tokenizer_files.converted(files, SIZE + 1)
    assert len(metadata["tokenizer.ggml.merges"].data) == len(ranks) - 256
    assert any("1 tokens of tiktoken.model are not two others joined" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("tokens", "pair"),
    [
        (["a", "b", "ab"], ("a", "b")),
        (["a", "b", "c", "bc", "ab", "abc"], ("a", "bc")),
        (["a", "b", "c", "ab", "bc", "abc"], ("ab", "c")),
        (["a", "aa", "aaa"], ("aa", "a")),
        (["a", "aa", "aaaa"], ("aa", "aa")),
        (["a", "b", "c", "abc"], None),
        (["a", "b", "c", "abc", "bc"], None),  # bc comes too late
    ],
)
def test_the_last_pair_is_what_joining_the_lowest_ranks_first_leaves(
    tokens: list[str], pair: tuple[str, str] | None
) -> None:
    ranks = {token.encode(): rank for rank, token in enumerate(tokens)}
    longest = max(ranks, key=len)
    assert split(longest, ranks) == (pair and tuple(part.encode() for part in pair))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"YQ== 0\nnot base64! 1\n", "line 2 is not a token"),
        (b"YQ==\n", "line 1 is not a token"),
        (b" 0\n", "line 1 is not a token"),
        (b"YQ== -1\n", "line 1 is not a token"),
        (b"YQ== 99999999999999999999\n", "line 1 is not a token"),
        (b"YQ== 0\nYg== 0\n", "two tokens have rank 0"),
        (b"YQ== 0\nYQ== 1\n", "line 2: a token is there twice"),
        (b"\x80\x04\x95pickle", "line 1 is not a token"),
        (b"YQ== 0\n", "no token for byte 0"),
        (b"", "no token for byte 0"),
    ],
)
def test_damaged_ranks_are_refused(files: Path, content: bytes, said: str) -> None:
    (files / "tiktoken.model").write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        converted(files)
    assert "tiktoken.model" in str(error.value)


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "tiktoken.model"
    path.write_bytes(content)
    try:
        assert all(rank >= 0 for rank in read_ranks(InputFile(path)).values())
    except InputError as error:
        assert str(path) in str(error)


def test_ids_beyond_the_vocabulary_are_refused(files: Path) -> None:
    with pytest.raises(InputError, match=f"expected less than {SIZE - 1}"):
        converted(files, SIZE - 1)


def test_code_of_another_class_is_not_guessed(files: Path) -> None:
    change_json(files / "tokenizer_config.json", lambda config: config.update(tokenizer_class="MyTokenizer"))
    with pytest.raises(InputError, match=r"found MyTokenizer.*--pre NAME"):
        converted(files)
    assert converted(files, pre="kimi-k2")["pre"] == "kimi-k2"
