"""Texts are read and cut as llama-imatrix does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla.errors import InputError
from gguf_mla.forward.opening import open_weights
from gguf_mla.text import encoders
from gguf_mla.text.calibration import Cut, Reader
from quantize.imatrix.model import name_of, reader_of
from tests.support import hub
from tests.support.command import convert

if TYPE_CHECKING:
    from pathlib import Path

LETTERS = Reader(lambda text: [ord(letter) for letter in text], bos=1, vocab=200)


def test_a_text_loses_one_newline_and_begins_with_bos(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ab\r\n\n")
    assert LETTERS.texts([tmp_path / "a.txt"]).tolist() == [1, 97, 98, 13, 10]


def test_a_directory_is_its_texts_in_order(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).write_text(name)
    assert LETTERS.texts([tmp_path, tmp_path / "a"]).tolist() == [1, 97, 1, 98, 1, 97]


def test_bos_replaces_the_first_token_of_a_chunk_and_the_rest_is_dropped() -> None:
    assert Cut(4).chunks(np.arange(10, 21), bos=1).tolist() == [[1, 11, 12, 13], [1, 15, 16, 17]]
    assert Cut(4, most=1, skipped=1).chunks(np.arange(10, 24), bos=None).tolist() == [[14, 15, 16, 17]]


def test_less_than_two_chunks_are_refused() -> None:
    with pytest.raises(InputError, match=r"too little text \(expected 8 tokens or more, .* found 7 tokens\)"):
        Cut(4).chunks(np.arange(7), bos=1)


def test_control_tokens_are_words_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("a<｜end▁of▁sentence｜>b", encoding="utf-8")
    convert(hub.BUNDLED, tmp_path / "m.gguf", "F32")
    for model in (hub.BUNDLED, tmp_path / "m.gguf"):
        weights = open_weights(model)
        plain, special = (reader_of(weights, special=special).texts([tmp_path / "t"]) for special in (False, True))
        assert special.size == 4
        assert plain.size > special.size
        assert plain[0] == special[0] == 0  # bos


def test_a_tokenizer_is_built_once_for_all_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    built, right = [], encoders._of_json
    monkeypatch.setattr(encoders, "_of_json", lambda stated: built.append(stated) or right(stated))
    encode = encoders.of_folder(open_weights(hub.BUNDLED).checkpoint.folder)
    assert [list(encode(text)) for text in ("a", "b")] == [list(encode("a")), list(encode("b"))]
    assert len(built) == 1


def test_a_matrix_is_called_as_its_model_is(tmp_path: Path) -> None:
    (tmp_path / "V3").mkdir()
    names = ("V3", "V3-Q4_K.gguf", "V3-Q4_K-00001-of-00005.gguf")
    assert [name_of(tmp_path / name) for name in names] == ["V3", "V3-Q4_K", "V3-Q4_K"]
