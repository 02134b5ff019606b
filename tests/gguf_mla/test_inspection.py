"""`gguf-mla inspect` says what is in a file, for people and for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from gguf_mla.cli.main import main
from gguf_mla.container import reader
from gguf_mla.container.values import Kind, array, string, u32
from gguf_mla.container.writer import TensorSpec, lay_out

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    metadata = {
        "general.architecture": string("deepseek2"),
        "deepseek2.block_count": u32(1),
        "tokenizer.ggml.tokens": array(Kind.STRING, [f"token{i}" for i in range(100)]),
    }
    tensors = [
        TensorSpec("blk.0.attn_k_b.weight", (2, 8, 64), "Q8_0"),
        TensorSpec("blk.0.attn_v_b.weight", (2, 4, 32), "F32"),
    ]
    layout = lay_out(metadata, tensors)
    path = tmp_path / "x.gguf"
    path.write_bytes(layout.head.ljust(layout.size, b"\0"))
    return path


def inspect(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["inspect", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_table_names_layout_parameters_and_types(file: Path) -> None:
    shown = inspect(file)
    assert "deepseek2" in shown
    assert "layout        MLA" in shown
    assert "1.3K in 2 tensors, 13.20 bits per weight" in shown  # 1024 · 34/32 + 256 · 4 bytes
    assert "string[100]" in shown
    assert "attn_k_b" not in shown


def test_the_head_is_read_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[object] = []
    parse = reader._Parser.parse
    monkeypatch.setattr(reader._Parser, "parse", lambda parser: parsed.append(parser) or parse(parser))
    inspect(file)
    assert len(parsed) == 1


def test_tensors_are_listed_on_request(file: Path) -> None:
    assert "blk.0.attn_k_b.weight  Q8_0  2x8x64" in inspect(file, "--tensors")


def test_json_has_everything_and_long_arrays_as_their_length(file: Path) -> None:
    found = json.loads(inspect(file, "--json"))["model"]
    assert found["layout"] == "MLA"
    assert found["parameters"] == 2 * 8 * 64 + 2 * 4 * 32
    assert found["bytes_by_type"] == {"Q8_0": 1088, "F32": 1024}
    assert found["metadata"]["tokenizer.ggml.tokens"] == {"length": 100}
    assert [tensor["name"] for tensor in found["tensors"]] == ["blk.0.attn_k_b.weight", "blk.0.attn_v_b.weight"]


@pytest.mark.parametrize(
    ("content", "words"), [(b"something else", "is not a GGUF file"), (b"PK\x03\x04 a zip", "is a zip archive")]
)
def test_what_is_no_gguf_file_is_a_sentence(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "x.gguf")])
    assert result.exit_code == 2
    assert words in result.stderr
