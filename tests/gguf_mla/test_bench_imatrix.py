"""The rehearsal of an importance matrix: what it measures, and what it says of the whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from gguf_mla.bench import calibration
from gguf_mla.synthetic import shapes
from tests.gguf_mla.test_bench_rehearsal import SMALL
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from pathlib import Path

V3 = shapes.SHAPES["deepseek-v3"]


def test_a_token_meets_the_active_parameters_of_the_paper() -> None:
    """37 billion with the embedding and the output head, which are not layers: 1.85 billion."""
    every, experts = calibration.met(V3 | {"num_nextn_predict_layers": 0})
    assert every == pytest.approx(37e9 - 1.85e9, rel=0.03)
    assert experts == pytest.approx(58 * 8 * 3 * 7168 * 2048)


def test_a_small_fraction_has_the_experts_that_a_token_chooses() -> None:
    assert calibration.runnable(shapes.reduced(V3, 1 / 4000))["n_routed_experts"] == 16


def test_a_model_of_several_streams_keeps_them_twice_and_what_experts_add_once() -> None:
    v4 = shapes.SHAPES["deepseek-v4-flash"]
    assert calibration.spilled(V3, 10) == 3 * 4 * 7168 * 10
    assert calibration.spilled(v4, 10) == (4 + 4 + 1) * 4 * v4["hidden_size"] * 10


@pytest.mark.thorough
def test_a_fraction_is_run_and_the_whole_projected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "small", SMALL)
    options = ("--shape", "small", "--fraction", "1/64", "--tokens", 1024, "--threads", 1, "--dir", tmp_path)
    answer = gguf_mla("bench", "imatrix", *options, "--json")
    assert answer.status == 0, answer.output
    [found] = json.loads(answer.output)["measurements"]
    assert found["spill"] == 3 * 4 * 512 * 1024
    assert set(found["stages"]) == {"attention", "experts", "shared experts", "the rest"}
    assert 0 < found["rate"] < 2 * found["sgemm"]
    assert found["whole_seconds"] > sum(found["stages"].values())
    assert list(tmp_path.iterdir()) == []
