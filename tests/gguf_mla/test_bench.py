"""The bench command: its table, its JSON, and what it says about a ggml that agrees, differs or is none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from gguf_mla import ggtypes
from gguf_mla.bench import types
from gguf_mla.bench.command import bench
from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_mla.ggtypes import TensorType

BRIEF = ["--rows", "4", "--seconds", "0"]


class GgufPy:
    """gguf-py in the place of the user's libggml-base: an independent encoder of the simple types."""

    def __init__(self, path: Path) -> None:
        del path

    def encode(self, x: np.ndarray, kind: TensorType, importance: np.ndarray | None, out: np.ndarray) -> None:
        assert importance is None
        out[:] = quantize(x, GGMLQuantizationType(kind.id)).view(np.uint8)

    def decode(self, data: np.ndarray, kind: TensorType, out: np.ndarray) -> None:
        out[:] = dequantize(data, GGMLQuantizationType(kind.id))


class Wrong(GgufPy):
    """A ggml with other bytes."""

    def encode(self, x: np.ndarray, kind: TensorType, importance: np.ndarray | None, out: np.ndarray) -> None:
        super().encode(x, kind, importance, out)
        out[0, 0] ^= 1


def run(*arguments: str) -> Any:
    return CliRunner().invoke(bench, [*arguments, *BRIEF], catch_exceptions=False)


def test_table_has_a_line_per_type_and_kind_of_weights() -> None:
    result = run("quantize", "--types", "Q8_0, q4_0")
    assert [line.split()[0] for line in result.output.splitlines()[1:]] == ["Q8_0", "Q4_0", "Q4_0"]
    assert "importance" in result.output.splitlines()[3]


def test_json_has_the_same_as_numbers() -> None:
    found = json.loads(run("dequantize", "--types", "Q8_0,BF16", "--json").output)
    assert [(line["type"], line["importance"], line["ratio"]) for line in found] == [
        ("Q8_0", False, None),
        ("BF16", False, None),
    ]
    assert all(line["mb_per_s"] > 0 for line in found)


@pytest.mark.parametrize("command", ["quantize", "dequantize"])
def test_equal_bytes_are_called_the_same(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(types, "Ggml", GgufPy)
    (tmp_path / "libggml-base.so").touch()
    result = run(command, "--types", "Q8_0,TQ2_0", "--against", str(tmp_path / "libggml-base.so"))
    assert result.exit_code == 0
    assert result.output.count("same") == 2


def test_other_bytes_are_called_different_with_status_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(types, "Ggml", Wrong)
    (tmp_path / "libggml-base.so").touch()
    result = run("quantize", "--types", "Q8_0", "--against", str(tmp_path / "libggml-base.so"))
    assert result.exit_code == 1
    assert "DIFFERENT" in result.output


def test_a_file_that_is_no_library_is_explained(tmp_path: Path) -> None:
    (tmp_path / "libggml-base.so").write_bytes(b"no library")
    with pytest.raises(InputError, match=r"no usable libggml-base.*beside llama.cpp's programs"):
        types.Ggml(tmp_path / "libggml-base.so")


def test_every_type_is_measured_by_default() -> None:
    assert {kind.name for kind in types.kinds(None)} == set(ggtypes.types()) - {"F32"}
