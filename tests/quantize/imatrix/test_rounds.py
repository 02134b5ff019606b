"""Rounds: what a rerun takes over, what it refuses, and what no run replaces."""

from __future__ import annotations

import dataclasses
import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from gguf_mla.errors import InputError
from gguf_mla.forward.place import Place
from quantize.imatrix.asked import Wanted, work_of
from quantize.imatrix.coverage import Coverage
from quantize.imatrix.job import How, Outcome, collect
from quantize.imatrix.rounds import Goal, as_rounds, in_rounds
from quantize.imatrix.run import result
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from quantize.imatrix.job import Work

UNREACHED = 10**6  # tokens that no expert sees


@pytest.fixture(scope="module")
def two(work: Work) -> list[Work]:
    """Two rounds of two chunks each."""
    wanted = Wanted(output=False, prediction=False, perplexity=True)
    return [work_of(work.weights, work.chunks[:2, start : start + 8].copy(), wanted, ["words.txt"]) for start in (0, 8)]


@pytest.fixture
def rounds(two: list[Work], tmp_path: Path) -> Callable[..., tuple[Outcome, list[str]]]:
    """Do both rounds; return the outcome, and the names of the parts that were computed."""
    model = tmp_path / "model"
    model.write_bytes(b"weights")

    def run(stop_at: int = 3, place: Place | None = None, **options: bool) -> tuple[Outcome, list[str]]:
        how = How(
            [model], place or Place(), fresh=options.get("fresh", False), overwrite=options.get("overwrite", False)
        )
        computed: list[str] = []

        def compute(work: Work, path: Path) -> Outcome:
            if len(computed) + 1 == stop_at:
                raise KeyboardInterrupt
            computed.append(path.name)
            return collect(work, path, dataclasses.replace(how, place=Place()))

        goal = Goal(tmp_path / "m.dat", "dat", UNREACHED, how.inputs, **options)
        return in_rounds(as_rounds(two, how), goal, compute, lambda _: None), computed

    return run


@pytest.fixture
def stopped(rounds: Callable[..., object], tmp_path: Path) -> Path:
    """The first round, of a run that was stopped in the second."""
    with pytest.raises(KeyboardInterrupt):
        rounds(stop_at=2)
    return tmp_path / "m.dat.round-1"


@pytest.mark.usefixtures("stopped")
def test_a_finished_round_is_taken_over_and_what_was_scored_before_is_not_half_told(
    rounds: Callable[..., tuple[Outcome, list[str]]], two: list[Work], tmp_path: Path
) -> None:
    outcome, computed = rounds()
    assert computed == ["m.dat.round-2"]
    assert (outcome.chunks, len(outcome.perplexity.chunks), outcome.estimate) == (4, 2, None)
    taken_over = outcome.path.read_bytes()
    again, computed = rounds(overwrite=True)
    assert len(computed) == 2
    assert again.path.read_bytes() == taken_over
    assert again.estimate == again.perplexity.estimate() is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.dat", "model"]
    assert two[0].about.run != two[1].about.run


def test_a_round_is_not_one_of_another_model_or_device(
    stopped: Path, rounds: Callable[..., tuple[Outcome, list[str]]], tmp_path: Path
) -> None:
    before = stopped.read_bytes()
    with pytest.raises(InputError, match=r"m\.dat\.round-1.* is a round of another run.*--overwrite"):
        rounds(place=Place(torch.device("cuda")))
    (tmp_path / "model").write_bytes(b"others ")
    with pytest.raises(InputError, match="is a round of another run"):
        rounds(fresh=True)
    assert stopped.read_bytes() == before
    assert len(rounds(overwrite=True)[1]) == 2


@pytest.mark.usefixtures("stopped")
def test_rounds_are_thrown_away_with_no_resume(rounds: Callable[..., tuple[Outcome, list[str]]]) -> None:
    outcome, computed = rounds(fresh=True)
    assert len(computed) == 2
    assert outcome.estimate is not None


def test_the_perplexity_of_some_chunks_is_not_given(work: Work, tmp_path: Path) -> None:
    outcome = Outcome(tmp_path, chunks=2)
    outcome.perplexity.chunks = [np.ones(4)]
    assert result(work, outcome, Coverage({}))["perplexity"] is None
    outcome.chunks = 1
    assert result(work, outcome, Coverage({}))["perplexity"]["value"] == pytest.approx(np.e)


@pytest.mark.parametrize("form", ["gguf", "dat"])
@pytest.mark.parametrize("which", ["model/config.json", "model/*.safetensors", "texts/b.txt"])
def test_no_input_is_ever_replaced(form: str, which: str, predicting: Path, tmp_path: Path) -> None:
    shutil.copytree(predicting, tmp_path / "model", copy_function=os.link)
    (tmp_path / "texts").mkdir()
    for name in "ab":
        (tmp_path / "texts" / f"{name}.txt").write_text("def words(text):\n    return text.split()\n" * 12)
    out = next(tmp_path.glob(which))
    before = out.read_bytes()
    options = ("--text", tmp_path / "texts", "--context", 8, "--chunks", 2, "--format", form, "--overwrite")
    answer = gguf_mla("imatrix", tmp_path / "model", out, *options, "--threads", 1)
    assert answer.status == 2
    assert "the output is one of the inputs" in answer.output
    assert out.read_bytes() == before
