"""What a file claims costs neither time nor memory; what it holds costs in proportion to its length."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from gguf_mla.container.reader import open_gguf
from gguf_mla.container.values import Kind, Value, array, string, u32
from gguf_mla.container.writer import TensorSpec, lay_out
from gguf_mla.errors import GgufMlaError, InputError
from gguf_mla.files import bounds, json_text
from gguf_mla.files.input import InputFile
from tests.attacks.costly import COSTLY, Costly
from tests.attacks.forked import cost
from tests.support.command import measure

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_mla.container.reader import GgufFile

SECONDS = 1.0  # of CPU
LIMIT_BYTES = 200_000_000
LARGE_BYTES = 10_000_000  # of a file: below, the limits hold; what is longer may cost in proportion
SECONDS_PER_BYTE, BYTES_PER_BYTE = SECONDS / LARGE_BYTES, 12


@pytest.mark.parametrize("costly", [pytest.param(case, id=case.name) for case in COSTLY])
def test_a_costly_file_costs_little(costly: Costly, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    costly.write(path)
    on_disk = sum(file.lstat().st_blocks * 512 for file in tmp_path.rglob("*"))
    found = cost(lambda: costly.call(path))
    assert found.outcome in {"read", "refused", "status 0", "status 2"}, found.words
    assert costly.words in found.words
    assert len(found.words) < 20_000
    assert found.seconds < SECONDS + on_disk * SECONDS_PER_BYTE
    assert found.memory < max(LIMIT_BYTES, on_disk * BYTES_PER_BYTE)


@pytest.mark.slow
def test_changed_files_over_all_readers_and_commands_end_well(tmp_path: Path) -> None:
    found = measure([sys.executable, "-m", "tests.attacks.run", "--count", "400"], tmp_path / "report.json")
    assert found.status == 0, found.output


def test_reading_a_pipe_never_waits_even_if_it_takes_the_place_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("gguf_mla.files.input.check_regular", lambda _: None)  # as if it had been a file a moment ago
    with pytest.raises(InputError, match="not a regular file"):
        InputFile(tmp_path / "pipe")


@pytest.mark.parametrize("left", [0, 24, 70_000])
def test_a_file_cut_off_while_its_head_is_read_is_a_sentence(
    left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(lay_out({"tokens": array(Kind.STRING, ["token"] * 50_000)}, []).head)
    init = InputFile.__init__

    def cut(self: InputFile, path: Path) -> None:
        init(self, path)
        os.truncate(path, left)

    monkeypatch.setattr(InputFile, "__init__", cut)
    with pytest.raises(GgufMlaError, match="shorter"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"general.alignment": u32(7)}, "general.alignment"),
        ({"general.alignment": u32(0)}, "general.alignment"),
        ({"general.alignment": Value(Kind.I64, -32)}, "general.alignment"),
        ({"general.alignment": u32(1 << 31)}, "general.alignment"),
        ({"general.alignment": string("32")}, "general.alignment"),
        ({"tokenizer.chat_template": string("x" * 70_000_000)}, "bytes of text"),
        ({"k" * 70_000: u32(1)}, "bytes in a name"),
        ({"tokens": array(Kind.U8, bytes(5_000_000))}, "items"),
        ({f"k{n}": u32(1) for n in range(70_000)}, "metadata entries"),
    ],
)
def test_what_our_reader_would_refuse_is_not_written(value: dict[str, Value], words: str) -> None:
    with pytest.raises(InputError, match=words):
        lay_out(value, [])


@pytest.mark.parametrize("shape", [(1 << 21,), (1 << 20, 1, 1)])
def test_a_tensor_that_our_reader_would_refuse_is_not_written(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"length of a row|experts and heads"):
        lay_out({}, [TensorSpec("t", shape, "F32")])


def test_a_list_is_decoded_only_as_far_as_it_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    texts, numbers = [f"é{n}" for n in range(1000)], list(range(1000))
    path.write_bytes(lay_out({"t": array(Kind.STRING, texts), "n": array(Kind.I32, numbers)}, []).head)
    found: GgufFile = open_gguf(path)
    for key, expected in (("t", texts), ("n", numbers)):
        data = found.metadata[key]
        assert data[:3] == expected[:3]
        assert repr(data) == f"[{', '.join(map(repr, expected[:6]))}, ...]"
        assert data._items is None
        assert data[-1] == expected[-1]
        assert list(data) == expected
        assert data == expected


def test_a_product_stops_at_its_bound() -> None:
    assert bounds.product([2, 3, 4], 24) == 24
    assert bounds.product([2, 3, 4], 23) == 24
    assert bounds.product([10**30] * 1_000_000, 100) == 101
    assert bounds.product([10**30, 0], 100) == 0
    assert bounds.product([], 100) == 1


@pytest.mark.parametrize(
    "text", ["{}", '{"a": "é"}', '["😀"]', '["' + "ab" * 99 + '😀é"]', '{"😀é": [1, "\\ud83d\\ude00"]}']
)
@pytest.mark.parametrize("times", [1, 9000])
def test_json_says_the_same_however_its_characters_are_kept(text: str, times: int) -> None:
    long = f"[{','.join([text] * times)}]"
    assert json_text.parse(long.encode()) == json.loads(long)


@pytest.mark.parametrize(
    "text", [b"\xff", b'"\xf0\x9f"', b'"\xed\xa0\x80"', b'["' + b"a" * 99_999 + b"\xf0\x9f\x98" + b'"]']
)
def test_json_that_is_not_utf8_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="utf-8"):
        json_text.parse(text)


def test_a_long_run_of_digits_in_a_text_is_no_number() -> None:
    assert json_text.parse(b'{"%s": 10000000000000000000000000000000}' % (b"1" * 9999)) == {"1" * 9999: 10**31}
