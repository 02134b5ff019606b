"""A mean over some tokens is judged with its standard error, and not at all where it says nothing of the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support import hub
from tests.support.command import convert
from verify.findings import Finding, Grade
from verify.job import Request, prove
from verify.levels import attention, logits
from verify.levels.attention import LayerAgreement
from verify.levels.logits import LEAST_SCORED, Scores
from verify.limits import Limits
from verify.measures import Sums, agreement

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 2048


def scores(kld: np.ndarray, surprise: float = 3.0) -> Scores:
    """Scores with these divergences, of a reference that gives what follows exp(-surprise) on average."""
    reference = -surprise + 0.1 * np.random.default_rng(0).standard_normal(kld.size)
    return Scores(reference, reference.copy(), kld, np.ones(kld.size, bool), VOCABULARY)


def grade(finding: Finding | None) -> Grade:
    return Grade.RIGHT if finding is None else finding.grade


def test_a_mean_is_judged_with_its_error() -> None:
    steady = np.full(LEAST_SCORED, 0.02)
    steady[::2] = 0.01
    one = np.zeros(LEAST_SCORED)
    one[7] = 10.0  # one token makes the whole mean
    assert grade(logits.judge(scores(steady), 0.012)) is Grade.WRONG
    assert grade(logits.judge(scores(steady), 0.0149)) is Grade.RIGHT
    assert grade(logits.judge(scores(one), 0.012)) is Grade.RIGHT


def test_few_tokens_are_not_judged_but_nan_is_a_difference() -> None:
    few = np.full(LEAST_SCORED - 1, 0.02)
    finding = logits.judge(scores(few), 0.01)
    assert finding is not None
    assert finding.grade is Grade.CANNOT_TELL
    assert f"mean KL divergence of {LEAST_SCORED - 1} tokens is not judged" in finding.sentence
    few[3] = np.nan
    assert grade(logits.judge(scores(few), 0.01)) is Grade.WRONG


def test_a_text_that_the_reference_does_not_know_is_not_judged() -> None:
    kld = np.full(200, 0.02)
    assert grade(logits.judge(scores(kld, np.log(VOCABULARY) - 0.1), 0.01)) is Grade.WRONG
    finding = logits.judge(scores(kld, np.log(VOCABULARY) + 1), 0.01)
    assert finding is not None
    assert finding.grade is Grade.CANNOT_TELL
    assert "no better than chance" in finding.sentence


def test_the_error_of_a_layer_is_that_of_its_tokens() -> None:
    """Against a bootstrap over tokens."""
    rng = np.random.default_rng(2)
    expected = rng.standard_normal((200, 64))
    found = expected + 0.05 * rng.exponential(size=(200, 1)) * rng.standard_normal((200, 64))
    measured = agreement(found, expected)
    off, size = np.abs(found - expected).sum(axis=1), np.abs(expected).sum(axis=1)
    drawn = rng.integers(0, 200, (4000, 200))
    assert measured.error == pytest.approx(np.std(off[drawn].sum(1) / size[drawn].sum(1)), rel=0.1)
    sums = Sums()
    for start in range(0, 200, 50):
        sums.add(found[start : start + 50], expected[start : start + 50])
    assert sums.agreement().error == pytest.approx(measured.error)
    assert agreement(found[:1], expected[:1]).error == np.inf


def test_one_token_does_not_make_a_layer_wrong_but_all_do() -> None:
    expected = np.random.default_rng(3).standard_normal((8, 64))
    one = expected.copy()
    one[5] *= 2  # a token that went to another expert
    result = LayerAgreement(0, "Q8_0", agreement(one, expected))
    assert result.measured.wmape > 3 * Limits().of("Q8_0").layer
    assert attention.judge(result, Limits()) is None
    assert attention.judge(LayerAgreement(0, "Q8_0", agreement(1.1 * expected, expected)), Limits()) is not None
    one[2, 3] = np.nan
    assert attention.judge(LayerAgreement(0, "Q8_0", agreement(one, expected)), Limits()) is not None


def test_short_and_random_texts_do_not_make_a_right_file_wrong(tmp_path: Path) -> None:
    convert(hub.BUNDLED, tmp_path / "q8.gguf", "Q8_0")
    for number, count in enumerate((8, 10, 24, 128)):
        ids = tmp_path / "ids.txt"
        drawn = np.random.default_rng(number).integers(0, VOCABULARY, count) if number != 1 else np.arange(1, 11)
        ids.write_text(" ".join(map(str, drawn)), encoding="utf-8")
        proof = prove(Request(hub.BUNDLED, tmp_path / "q8.gguf", tokens=ids, threads=2))
        assert proof.grade is Grade.RIGHT
        assert [finding.grade for finding in proof.findings] == [Grade.CANNOT_TELL]


def test_a_random_model_has_no_limit_of_its_divergence(tmp_path: Path) -> None:
    checkpoint = hub.write(tmp_path / "hub", "v2", num_hidden_layers=2)
    convert(checkpoint, tmp_path / "q8.gguf", "Q8_0")
    proof = prove(Request(checkpoint, tmp_path / "q8.gguf", context=128, chunks=2, threads=2))
    assert proof.grade is Grade.RIGHT
    assert proof.scores is not None
    assert proof.scores.divergence().value > Limits().of("Q8_0").kld
    assert "no better than chance" in proof.findings[0].sentence
