"""The entries, counts and sums of small models of every family are those that llama-imatrix b11434 makes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla.text.tokens import SAMPLE
from tests.quantize.imatrix import families
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from pathlib import Path

CLOSE = 1e-4  # relative, in norm
TIES = 1e-4  # of the tokens of an expert may have gone elsewhere


@pytest.mark.parametrize("kind", families.FAMILIES)
def test_the_matrix_of_a_family_is_that_of_llama_imatrix(kind: str, tmp_path: Path) -> None:
    """Recorded from F32 files, with an F32 cache and without flash attention."""
    out = tmp_path / "m.gguf"
    options = ("--context", families.CONTEXT, "--chunks", families.CHUNKS, "--threads", 1, "--no-ppl", "--quiet")
    answer = gguf_mla("imatrix", families.checkpoint(tmp_path, kind), out, "--text", SAMPLE, *options)
    assert answer.status == 0, answer.output
    expected = json.loads(families.RECORDED.read_text("utf-8"))[kind]
    found = families.recorded(families.arrays(out))
    assert set(found) == set(expected)
    for name, entry in expected.items():
        counts = np.array(entry["counts"])
        assert found[name]["shape"] == entry["shape"], name
        assert np.abs(counts - found[name]["counts"]).max() <= TIES * counts.sum(), name
        assert families.distance(found[name]["sketch"], entry["sketch"]) < CLOSE, name
