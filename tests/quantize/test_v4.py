"""DeepSeek-V4 as llama-quantize writes it, byte for byte where that is asked for, and better where it is not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla import codec
from gguf_mla.container.reader import open_gguf
from tests.golden_recipes import v4_bytes
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Shared


@pytest.fixture(scope="module")
def model(shared: Shared) -> Path:
    return shared("v4-f32", v4_bytes.model) / "v4-f32.gguf"


@pytest.mark.parametrize("kind", v4_bytes.TYPES)
def test_types_and_bytes_are_llama_quantizes(kind: str, model: Path, tmp_path: Path) -> None:
    matrix = v4_bytes.importance(tmp_path / "imatrix.gguf", model)
    out = tmp_path / "out.gguf"
    answer = gguf_mla("quantize", model, out, kind, "--imatrix", matrix, "--compat", "llama.cpp", "--quiet")
    assert answer.status == 0, answer.output
    golden = json.loads(v4_bytes.RECORD.read_text(encoding="utf-8"))[kind]
    found = v4_bytes.record_of(out)
    assert {name: (golden.get(name), entry) for name, entry in found.items() if golden.get(name) != entry} == {}
    assert found.keys() == golden.keys()


def test_importance_as_it_is_collected_is_enough(model: Path, tmp_path: Path) -> None:
    """What no collector sees needs none, and each group of rows of attn_output_a has its own."""
    matrix = v4_bytes.importance(tmp_path / "imatrix.gguf", model, collected=True)
    answer = gguf_mla("quantize", model, tmp_path / "out.gguf", "IQ2_XXS", "--imatrix", matrix, "--quiet")
    assert answer.status == 0, answer.output
    tensor = open_gguf(tmp_path / "out.gguf").tensors["blk.0.attn_output_a.weight"]
    sums = open_gguf(matrix)["blk.0.attn_output_a.weight.in_sum2"].values().reshape(2, -1)
    count = open_gguf(matrix)["blk.0.attn_output_a.weight.counts"].values()[0, 0]
    values = open_gguf(model)["blk.0.attn_output_a.weight"].values().reshape(2, -1, tensor.shape[-1])
    halves = [codec.encode(values[group], "IQ2_XXS", importance=sums[group] / count) for group in (0, 1)]
    assert np.array_equal(tensor.read(), np.concatenate(halves))
    stock = gguf_mla("quantize", model, tmp_path / "s.gguf", "IQ2_XXS", "--imatrix", matrix, "--compat", "llama.cpp")
    assert stock.status == 2  # as llama-quantize, which takes it for a matrix of another model
