"""A tokenizer that is damaged or hostile is named in a sentence, never met with a traceback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_mla.errors import InputError
from tests.convert.tokenizer_files import Json, added, converted, refusal, small, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def model(files: dict[str, Json]) -> Json:
    found: Json = files["tokenizer.json"]["model"]
    return found


def into(path: str, value: Any) -> Callable[[dict[str, Json]], None]:
    """Return a change that puts `value` at `path` (keys joined by "/") in tokenizer.json."""

    def change(files: dict[str, Json]) -> None:
        *parents, last = path.split("/")
        place = files["tokenizer.json"]
        for key in parents:
            place = place[key]
        place[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (into("model/type", "Unigram"), "found 'Unigram'"),
        (into("model", None), "model is not BPE"),
        (into("model/byte_fallback", True), "byte_fallback"),
        (into("model/end_of_word_suffix", "</w>"), "end_of_word_suffix"),
        (into("model/vocab", []), "not a mapping"),
        (into("model/vocab/c", 3), "id 3 is given to both 'a' and 'c'"),
        (into("model/vocab/c", -5), "'c' has the id -5, which is negative"),
        (into("model/vocab/c", 5.0), "not an integer"),
        (into("model/vocab/c", True), "not an integer"),
        (into("model/vocab/c", 12), "token 'c' has an id beyond"),
        (into("model/merges", ["a b", "b c"]), "merge 1"),
        (into("model/merges", ["a b c"]), "merge 0"),
        (into("model/merges", [["a"]]), "merge 0"),
        (into("model/merges", [7]), "merge 0"),
        (into("model/merges", None), "merges is not a list"),
        (into("added_tokens", {}), "added_tokens is not a list"),
        (into("added_tokens", [7]), "an added token needs"),
        (into("added_tokens", [added(-1, "x")]), "an added token needs"),
        (into("added_tokens", [added(3, "x")]), "id 3 is given to both 'a' and 'x'"),
        (into("added_tokens", [added(10, "a")]), "'a' has two ids, 3 and 10"),
        (into("added_tokens", [added(12, "x")]), "token 'x' has an id beyond"),
        (into("added_tokens", [added(10, "x\ud800")]), "lone surrogate"),
        (into("pre_tokenizer", None), "not byte-level"),
        (into("pre_tokenizer", {"type": "Whitespace"}), "not byte-level"),
        (into("pre_tokenizer", {"type": "Sequence"}), "Sequence without a list"),
        (into("pre_tokenizer", [1]), "a step without a type"),
    ],
)
def test_a_damaged_tokenizer_is_named(tmp_path: Path, change: Callable[[dict[str, Json]], None], said: str) -> None:
    files = small()
    change(files)
    sentence = refusal(tmp_path, files)
    assert said in sentence
    assert str(tmp_path) in sentence


@pytest.mark.parametrize("key", ["bos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", [-2, 12, 10**30])
def test_an_id_outside_the_vocabulary_is_named(tmp_path: Path, key: str, value: int) -> None:
    files = small()
    del files["tokenizer_config.json"]["bos_token"]
    files["config.json"][key] = value
    assert f"{key} is not a token of the vocabulary" in refusal(tmp_path, files)


@pytest.mark.parametrize("size", [0, -1, 1 << 40])
def test_an_impossible_size(tmp_path: Path, size: int) -> None:
    assert "vocab_size" in refusal(tmp_path, small(), size)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ("tiktoken.model", "tokenizer_class"),
        ("tokenizer.model", "found only tokenizer.model"),
        (None, "found none"),
    ],
)
def test_a_missing_tokenizer(tmp_path: Path, there: str | None, said: str) -> None:
    if there:
        (tmp_path / there).touch()
    assert said in refusal(tmp_path, {"config.json": {}})


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\xef\xbb\xbf[", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b'{"a": %s}' % (b"9" * 5000)],
    ids=["empty", "bom-and-cut", "list", "cut", "not-utf8", "nested-lists", "nested-objects", "huge-number"],
)
def test_a_file_that_is_no_json_object(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path, small())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        converted(tmp_path)


PATHS = [
    ("tokenizer.json", "added_tokens"),
    ("tokenizer.json", "added_tokens", 2),
    ("tokenizer.json", "added_tokens", 2, "content"),
    ("tokenizer.json", "normalizer"),
    ("tokenizer.json", "pre_tokenizer"),
    ("tokenizer.json", "pre_tokenizer", "pretokenizers"),
    ("tokenizer.json", "pre_tokenizer", "pretokenizers", 0),
    ("tokenizer.json", "pre_tokenizer", "pretokenizers", 0, "pattern"),
    ("tokenizer.json", "post_processor"),
    ("tokenizer.json", "post_processor", "processors"),
    ("tokenizer.json", "post_processor", "single"),
    ("tokenizer.json", "model"),
    ("tokenizer.json", "model", "vocab"),
    ("tokenizer.json", "model", "vocab", "a"),
    ("tokenizer.json", "model", "merges"),
    ("tokenizer.json", "model", "merges", 0),
    ("tokenizer_config.json", "bos_token"),
    ("tokenizer_config.json", "add_bos_token"),
    ("tokenizer_config.json", "added_tokens_decoder"),
    ("tokenizer_config.json", "added_tokens_decoder", "9"),
    ("tokenizer_config.json", "chat_template"),
    ("config.json", "model_type"),
    ("config.json", "eos_token_id"),
    ("config.json", "text_config"),
]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "id", "content", "single", "name", "template"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), value=JSON_VALUES)
def test_whatever_stands_anywhere_is_written_or_refused(tmp_path: Path, path: tuple[Any, ...], value: Any) -> None:
    files = small()
    files["tokenizer_config.json"]["added_tokens_decoder"] = {}
    place: Any = files
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    write(tmp_path, files)
    try:
        metadata, _ = converted(tmp_path)
    except InputError as error:
        assert len(str(error)) < 2000
        return
    assert len(metadata["tokenizer.ggml.tokens"].data) == 12
    assert all(isinstance(token, str) for token in metadata["tokenizer.ggml.tokens"].data)
