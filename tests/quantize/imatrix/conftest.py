"""A model small enough to be run over a text in a second, and the command that makes its matrix."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from gguf_mla.forward.opening import open_weights
from quantize.imatrix.asked import Wanted, work_of
from quantize.imatrix.job import How, collect
from tests.support import hub

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from quantize.imatrix.job import Outcome, Work

    Make = Callable[..., Work]

CONTEXT = 24


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models this small are computed in less time than threads take to meet."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    return np.random.default_rng(5).integers(5, 2000, (3, CONTEXT))


@pytest.fixture(scope="session")
def predicting(shared: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A sparse model of two layers, one dense, and one of prediction."""
    options = {"num_hidden_layers": 2, "n_routed_experts": 8}
    return shared("imatrix-v32", lambda directory: hub.write(directory / "v32", "v32", **options)) / "v32"


@pytest.fixture(scope="session")
def work(predicting: Path, tokens: np.ndarray) -> Work:
    """All that can be collected of it."""
    weights = open_weights(predicting)
    assert weights.model.predictors
    return work_of(weights, tokens, Wanted(output=True, prediction=True, perplexity=False), ["words.txt"])


@pytest.fixture
def made(work: Work, tmp_path: Path) -> Callable[..., bytes]:
    """Make its matrix and return the bytes; arguments change the work."""

    def make(name: str = "m.gguf", how: How | None = None, **changes: object) -> bytes:
        result: Outcome = collect(dataclasses.replace(work, **changes), tmp_path / name, how or How())
        return result.path.read_bytes()

    return make


@pytest.fixture(scope="session")
def undisturbed(work: Work, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What every run of it has to give."""
    return collect(work, tmp_path_factory.mktemp("undisturbed") / "m.gguf", How()).path.read_bytes()
