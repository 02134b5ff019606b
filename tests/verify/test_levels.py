"""The measures of the levels against their definitions, computed the plain way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gguf_mla.errors import InputError
from gguf_mla.forward import layers
from gguf_mla.forward.layers import Pass
from gguf_mla.forward.model import BEST, BEST_TWO, Routing
from gguf_mla.forward.tensors import Stack
from verify.comparison import WeightPiece
from verify.levels import logits
from verify.levels.weights import TensorError
from verify.limits import TABLE, Limits
from verify.measures import agreement

VOCAB, HIDDEN, TOKENS = 301, 16, 40


def side(seed: int) -> Any:
    """A pass with output weights."""
    matrix = np.random.default_rng(seed).standard_normal((VOCAB, HIDDEN), np.float32)
    stack = Stack("output.weight", 1, VOCAB, HIDDEN, "F32", lambda _index, start, stop: matrix[start:stop])
    return Pass(SimpleNamespace(matrix=matrix, stack=lambda _name: stack))


@pytest.mark.parametrize("pieces", [1, 7])
def test_scores_are_those_of_whole_distributions(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguf_mla.forward.place.CHUNK_VALUES", VOCAB * HIDDEN // pieces)
    monkeypatch.setattr(logits, "SCORED", VOCAB // pieces * 7)  # of some tokens at a time
    rng = np.random.default_rng(0)
    ours, theirs = side(1), side(2)
    theirs.weights.matrix[:] = ours.weights.matrix + 0.1 * theirs.weights.matrix
    hidden = rng.standard_normal((TOKENS, HIDDEN), np.float32)
    targets = rng.integers(0, VOCAB, TOKENS)
    states = torch.from_numpy(hidden)
    sides = (ours, states, "output.weight"), (theirs, states, "output.weight")
    scores = logits._score(*sides, torch.from_numpy(targets))
    p, q = (log_softmax((hidden @ each.weights.matrix.T).astype(np.float64)) for each in (ours, theirs))
    at = np.arange(TOKENS), targets
    np.testing.assert_allclose(scores.reference, p[at], rtol=1e-5)
    np.testing.assert_allclose(scores.candidate, q[at], rtol=1e-5)
    np.testing.assert_allclose(scores.kld, (np.exp(p) * (p - q)).sum(axis=1), rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(scores.same_top, p.argmax(axis=1) == q.argmax(axis=1))
    reference, _ = scores.perplexities()
    assert reference.value == pytest.approx(np.exp(-p[at].mean()), rel=1e-5)
    assert reference.error == pytest.approx(reference.value * p[at].std(ddof=1) / np.sqrt(TOKENS), rel=1e-4)
    _, root = scores.probability_shift()
    assert root.value == pytest.approx(np.sqrt(np.mean((np.exp(q[at]) - np.exp(p[at])) ** 2)), rel=1e-4)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return (
        x - np.log(np.exp(x - x.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)) - x.max(axis=1, keepdims=True)
    )


def test_the_second_half_of_a_chunk_is_scored() -> None:
    tokens = np.arange(100, 125)
    cut = logits.chunks(tokens, context=8, most=2, bos=0)
    np.testing.assert_array_equal(cut, [[0, *range(101, 108)], [0, *range(109, 116)]])
    np.testing.assert_array_equal(logits._targets(torch.from_numpy(cut)), [105, 106, 107, 113, 114, 115])
    assert logits.chunks(tokens, context=512, most=4, bos=None).shape == (1, 25)


def test_the_error_of_a_tensor_by_hand() -> None:
    reference = np.ones((3, 64), np.float32)
    candidate = reference.copy()
    candidate[1, 40] = 1.5
    candidate[2, 7] = np.inf
    error = TensorError("x", "Q8_0", 0)
    error.add(WeightPiece(4, 10, 13), reference, candidate, 32)
    assert error.special == 1
    assert error.rms == pytest.approx(np.sqrt((0.25 + 1) / 192))  # what is not finite counts as zero
    assert (error.peak, error.peak_place.row, error.peak_place.col) == (1.0, 12, 0)
    assert (error.row_place.index, error.row_place.row) == (4, 12)
    assert error.row_rms == pytest.approx(np.sqrt(1 / 64))


def test_routing_by_hand() -> None:
    # Group 0 has the best expert, group 1 the best two; the bias moves the choice and not the weights.
    scores = torch.tensor([[0.9, 0.1, 0.7, 0.6, 0.2, 0.2]])
    logit = torch.log(scores / (1 - scores))
    sigmoid = Routing(6, 2, 3, 1, "sigmoid", BEST_TWO, True, 2.0, True)
    chosen, weights = layers.route(logit, torch.zeros(6), sigmoid)
    assert sorted(chosen[0]) == [2, 3]
    np.testing.assert_allclose(weights[0].sort().values, np.array([0.6, 0.7]) / 1.3 * 2, rtol=1e-5)
    by_best = Routing(6, 2, 3, 1, "sigmoid", BEST, False, 1.0, True)
    chosen, weights = layers.route(logit, torch.tensor([0, 0.85, 0, 0, 0, 0]), by_best)
    np.testing.assert_array_equal(chosen[0], [1, 0])
    np.testing.assert_allclose(weights[0], [0.1, 0.9], rtol=1e-5)


def test_agreement_by_hand() -> None:
    measured = agreement(np.array([1.0, 1.0]), np.array([1.0, 0.0]))
    assert (measured.cosine, measured.wmape, measured.mse) == (pytest.approx(0.5**0.5), 1.0, 0.5)


def test_limits_leave_an_unrelated_row_no_room() -> None:
    # A row without relation to the reference's has a relative RMS error of 1 at least.
    assert all(limit.rms <= limit.row < 1 for limit in TABLE.values())
    assert Limits().divergence({"Q8_0": 0.5, "F32": 0.5}) == pytest.approx(0.002, rel=1e-3)
    with pytest.raises(InputError, match="not a type of weights"):
        Limits().of("I16")


def test_small_fp8_matrices_pass_as_bf16() -> None:
    """All values of one FP8 block share a scale, so their few mantissas are rounded alike."""
    limit, worst = TABLE["BF16"], 0.0
    codes = (torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) * 120).clamp(-448, 448)
    codes = codes.to(torch.float8_e4m3fn).float()
    for scale in np.geomspace(1, 2, 300):
        values = codes * float(np.float32(scale))
        error = (values.bfloat16().float() - values).double()
        rows = error.norm(dim=1) / values.double().norm(dim=1)
        rms = float(error.norm() / values.double().norm())
        assert rms < limit.rms
        assert float(rows.max()) < limit.row
        assert float((error.abs().amax(1) / values.abs().amax(1)).max()) < limit.peak
        worst = max(worst, rms)
    assert worst > limit.rms / 1.5  # it is not looser than that
