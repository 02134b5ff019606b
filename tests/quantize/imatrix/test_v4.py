"""The matrix of a DeepSeek-V4: against llama-imatrix, against a pass that holds everything, and what takes it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla.container.reader import open_gguf
from gguf_mla.forward import walk
from gguf_mla.forward.attention import FORMS
from gguf_mla.forward.layers import Pass
from gguf_mla.forward.opening import open_weights
from gguf_mla.text.tokens import SAMPLE
from quantize.imatrix.asked import Wanted, work_of
from quantize.imatrix.entries import Collector
from quantize.imatrix.job import FORM, How, collect
from tests.quantize.imatrix.v4 import CHUNKS, CONTEXT, RECORD, summary
from tests.support import v4
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from pathlib import Path

CLOSE = 1e-4  # relative, in norm, as for other models; found: 1e-6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as it is published, and its matrix."""
    directory = tmp_path_factory.mktemp("v4")
    v4.write(directory / "v4-flash", "v4-flash")
    options = ("--text", SAMPLE, "--context", CONTEXT, "--chunks", CHUNKS, "--no-ppl", "--threads", 1)
    answer = gguf_mla("imatrix", directory / "v4-flash", directory / "m.gguf", *options)
    assert answer.status == 0, answer.output
    return directory


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(float) - expected) / np.linalg.norm(expected))


def test_the_sums_are_those_of_llama_imatrix(made: Path) -> None:
    found = summary(made / "m.gguf")
    with np.load(RECORD) as recorded:
        expected = dict(recorded)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].shape == values.shape, name
        if name.endswith(".counts"):
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        else:
            assert distance(found[name], values) < CLOSE, name


def test_what_is_kept_elsewhere_between_the_layers_changes_no_more_than_rounding(made: Path, tmp_path: Path) -> None:
    weights, tokens = open_weights(made / "v4-flash"), np.random.default_rng(3).integers(5, 2000, (2, 40))
    work = work_of(weights, tokens, Wanted(output=True, prediction=False, perplexity=False), [])
    assert work.beside_bytes == (4 + 4 + 1) * 4 * weights.model.hidden * tokens.size
    collector = Collector(dict(work.entries))
    pass_ = Pass(weights, FORMS[FORM], observe=collector)
    pass_.linear(walk.hidden_states(pass_, tokens), "output.weight")
    matrix = open_gguf(collect(work, tmp_path / "m.gguf", How()).path)
    for entry in work.entries.values():
        squares, counts, _plain = collector.done(entry).rounded()
        found = [matrix[f"{entry.name}.{part}"].values() for part in ("in_sum2", "counts")]
        np.testing.assert_array_equal(found[1].ravel(), np.ravel(counts), err_msg=entry.name)
        assert distance(found[0].ravel(), squares.ravel()) < 1e-5, entry.name
    in_memory = collect(dataclasses.replace(work), tmp_path / "n.gguf", How(in_memory=True)).path
    assert in_memory.read_bytes() == (tmp_path / "m.gguf").read_bytes()


def test_files_of_two_bits_are_written_with_it(made: Path, tmp_path: Path) -> None:
    """Straight from the checkpoint; what nothing measures has a type that needs no importance."""
    for kind in ("MLA-IQ2_XXS", "IQ2_XXS"):
        out = tmp_path / f"{kind}.gguf"
        answer = gguf_mla("convert", made / "v4-flash", out, "--type", kind, "--imatrix", made / "m.gguf", "--quiet")
        assert answer.status == 0, answer.output
        types = {name: tensor.type for name, tensor in open_gguf(out).tensors.items()}
        assert types["blk.3.ffn_gate_exps.weight"] == "IQ2_XXS"
        assert types["output_hc_fn.weight"] == types["blk.2.attn_compressor_ape.weight"] == "F32"
