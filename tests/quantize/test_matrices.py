"""Every importance matrix that we write is one that llama-quantize has read, and our files are the ones it made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.quantize import matrices

if TYPE_CHECKING:
    from pathlib import Path

RECORD = json.loads(matrices.RECORD.read_text())


@pytest.fixture(scope="module")
def mla(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return matrices.base(tmp_path_factory.mktemp("mla"))


@pytest.mark.parametrize("case", matrices.CASES, ids=lambda case: case.__name__)
def test_the_matrix_and_the_tensors_are_those_of_llama_quantize(tmp_path: Path, mla: Path, case: object) -> None:
    made = case(tmp_path, mla)  # type: ignore[operator]
    recorded = RECORD[case.__name__]  # type: ignore[attr-defined]
    assert matrices.digest_of(made.matrix) == recorded["matrix"]
    assert matrices.ours(made, tmp_path / "ours.gguf") == recorded["tensors"]
