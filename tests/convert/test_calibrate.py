"""`--calibrate` hands on what the conversion was told, and knows a matrix again that it has made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convert import calibrate
from gguf_mla.cli.options import ReadingOptions, RunOptions, TypeOptions
from gguf_mla.errors import InputError
from tests.support import hub
from tests.support.command import gguf_mla
from tests.support.matrices import write_imatrix


@pytest.mark.parametrize("fresh", [False, True])
def test_no_resume_is_handed_on(fresh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    command = SimpleNamespace(main=lambda words, *_, **__: given.extend(words))
    monkeypatch.setattr(calibrate.discovery, "plugins", lambda *_: [SimpleNamespace(load=lambda: command)])
    calibrated(tmp_path, tmp_path / "t.txt", RunOptions(no_resume=fresh))
    assert ("--no-resume" in given) == fresh


@pytest.mark.parametrize("wish", ["keep", "drop"])
def test_prediction_layers_that_are_kept_are_run(wish: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their matrices of two bits need importance as all others do."""
    given: list[str] = []
    command = SimpleNamespace(main=lambda words, *_, **__: given.extend(words))
    found = SimpleNamespace(plugins=lambda *_: [SimpleNamespace(load=lambda: command)])
    monkeypatch.setattr(calibrate, "discovery", found)
    model = hub.write(tmp_path / "model", "v3", num_hidden_layers=1, n_routed_experts=8, num_experts_per_tok=2)
    answer = gguf_mla("convert", model, tmp_path / "m.gguf", "--mtp", wish, "--calibrate", tmp_path / "t.txt")
    assert answer.status == 2  # as there is no matrix
    assert ("--mtp" in given) == (wish == "keep")


def test_a_matrix_is_known_by_its_texts_and_standard_input_is_one(tmp_path: Path) -> None:
    sums = {"blk.0.attn_q_a.weight": (np.ones((1, 8), np.float32), np.ones(1, np.float32))}
    write_imatrix(tmp_path / "m.imatrix.gguf", sums, datasets=["stdin"], chunk_count=2, chunk_size=8)
    assert calibrated(tmp_path, Path("-"), RunOptions()).imatrix_files == (tmp_path / "m.imatrix.gguf",)
    with pytest.raises(InputError, match=r"not the importance matrix of these texts.*t\.txt"):
        calibrated(tmp_path, tmp_path / "t.txt", RunOptions())


@pytest.mark.parametrize("predictors", [0, 1])
def test_a_matrix_without_the_prediction_layers_is_not_taken_for_one_with_them(tmp_path: Path, predictors: int) -> None:
    sums = {"blk.0.attn_q_a.weight": (np.ones((1, 8), np.float32), np.ones(1, np.float32))}
    path = tmp_path / "m.imatrix.gguf"
    write_imatrix(path, sums, datasets=["t.txt"], chunk_count=2, chunk_size=8, predictors=predictors)
    text, options = tmp_path / "t.txt", RunOptions()
    assert calibrated(tmp_path, text, options, predicting=False).imatrix_files == (path,)
    if predictors:
        assert calibrated(tmp_path, text, options, predicting=True).imatrix_files == (path,)
    else:
        with pytest.raises(InputError, match="made without the layers of multi-token prediction"):
            calibrated(tmp_path, text, options, predicting=True)


def calibrated(directory: Path, text: Path, options: RunOptions, *, predicting: bool = False) -> Any:
    how = calibrate.Calibration(directory, [text], ReadingOptions(), predicting)
    return calibrate.calibrated(how, directory / "m-imatrix.gguf", TypeOptions(), options)
