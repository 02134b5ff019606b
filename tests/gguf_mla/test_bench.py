"""The bench command: its table, its JSON, and what it says about a ggml that agrees, differs or is none."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from gguf_mla import ggtypes
from gguf_mla.bench import gpu, processor, types
from gguf_mla.bench.command import bench
from gguf_mla.errors import InputError
from tests.support import hub
from tests.support.command import convert

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_mla.ggtypes import TensorType

BRIEF = ["--rows", "4", "--seconds", "0"]


class GgufPy:
    """gguf-py in the place of the user's libggml-base: an independent encoder of the simple types."""

    def __init__(self, path: Path) -> None:
        del path

    def encode(self, x: np.ndarray, tensor_type: TensorType, importance: np.ndarray | None, out: np.ndarray) -> None:
        assert importance is None
        out[:] = quantize(x, GGMLQuantizationType(tensor_type.id)).view(np.uint8)

    def decode(self, data: np.ndarray, tensor_type: TensorType, out: np.ndarray) -> None:
        out[:] = dequantize(data, GGMLQuantizationType(tensor_type.id))


class Wrong(GgufPy):
    """A ggml with other bytes."""

    def encode(self, x: np.ndarray, tensor_type: TensorType, importance: np.ndarray | None, out: np.ndarray) -> None:
        super().encode(x, tensor_type, importance, out)
        out[0, 0] ^= 1


def run(*arguments: str) -> Any:
    return CliRunner().invoke(bench, [*arguments, *BRIEF], catch_exceptions=False)


def test_table_has_a_line_per_type_and_kind_of_weights() -> None:
    result = run("quantize", "--types", "Q8_0, q4_0")
    assert re.match(r"compiled for \S+, vectors of (128|256|512) bits\n", result.output)
    assert [line.split()[0] for line in result.output.splitlines()[2:]] == ["Q8_0", "Q4_0", "Q4_0"]
    assert "importance" in result.output.splitlines()[4]


def test_another_processor_measures_in_a_process_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    result = run("quantize", "--types", "Q8_0", "--cpu", "generic")
    assert result.exit_code == 0
    assert capfd.readouterr().out.startswith("compiled for generic, vectors of 128 bits\n")


def test_the_bytes_of_avx512_are_left_out_by_name() -> None:
    features = processor.features_without_avx512().split(",")
    assert not [name for name in features if name.startswith(("+avx512", "+sse4a"))]


def test_json_has_the_same_as_numbers() -> None:
    found = json.loads(run("dequantize", "--types", "Q8_0,BF16", "--json").output)["measurements"]
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
    with pytest.raises(InputError, match=r"not a usable libggml-base.*beside llama.cpp's programs"):
        types.Ggml(tmp_path / "libggml-base.so")


def test_every_type_is_measured_by_default() -> None:
    assert {tensor_type.name for tensor_type in types.wanted_types(None)} == set(ggtypes.types()) - {"F32"}


def gpu_report(**changes: Any) -> gpu.Report:
    facts = {
        "device": "A GPU (1)", "cores": 8, "copies": {"in its memory": 3900.0, "up": 50.0, "down": 52.0},
        "kernels": [
            gpu.KernelSpeed("Q4_K", "encode", 60.0, 68.0, 0.02),
            gpu.KernelSpeed("Q4_K", "decode", 1500.0, 1710.9, 0.44),
        ],
        "core_gb_per_s": 0.5, "read_gb_per_s": 7.0,
        "files": [
            gpu.EndToEnd("cpu", 10**9, 10**8, 2.0, 0.5, None),
            gpu.EndToEnd("cuda", 10**9, 10**8, 0.2, 5.0, True),
        ],
    }  # fmt: skip
    return gpu.Report(**{**facts, **changes})


def test_gpu_report_compares_with_a_core_and_with_the_next_limit() -> None:
    text = gpu.as_text(gpu_report())
    assert "encodes Q4_K at 0.50 GB/s; the device is 120 times as fast." in text
    assert "reading the file 7.0 GB/s; 71% of the lower one is reached." in text
    assert "same" in text.splitlines()[-3]
    assert "Limits" not in gpu.as_text(gpu_report(files=[]))
    page = gpu.document(gpu_report(), "gguf-mla bench gpu")
    assert page.startswith("# A GPU (1)\n\nWritten by `gguf-mla bench gpu`.")
    assert gpu.slug("A GPU (1)") == "a-gpu-1"


def test_a_file_is_quantized_and_compared_from_disk_to_disk(tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    convert(hub.BUNDLED, source)
    first, second = gpu.end_to_end(source, tmp_path, ("cpu", "cpu"), "Q8_0")
    assert (first.same_as_cpu, second.same_as_cpu) == (None, True)
    assert first.output_bytes == second.output_bytes < first.source_bytes == source.stat().st_size
    assert gpu.read_rate(source) > 0
