"""What float32 explains between two computations of a model: by hand, by experiment, and not by any mistake."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla.forward.place import Place
from tests.support import hub
from tests.support.attention import bundled_model
from tests.support.close import limit
from tests.support.command import convert
from tests.support.weights import gguf_weights
from tests.verify.faults import READER_FAULTS
from verify import rounding
from verify.levels import engine
from verify.sections import sections

if TYPE_CHECKING:
    from pathlib import Path

    from tests.verify.faults import ReaderFault

TOKENS = np.concatenate([[0], np.random.default_rng(7).integers(100, 1900, 127)])


def test_products_by_hand() -> None:
    model = dataclasses.replace(
        bundled_model(), layers=3, dense_layers=1, hidden=100, q_rank=20, kv_rank=30, nope=8, rope=4, heads=2, value=5,
        ffn=60, expert_ffn=7, routing=dataclasses.replace(bundled_model().routing, used=3),
    )  # fmt: skip
    attention = (100 + 20) + 30 + 8 + 4 + 16 + 10
    assert rounding.products(model, 16) == 3 * attention + (100 + 60) + 2 * (100 + 7 + 3) + 100
    assert rounding.relative(model, 16) == limit(rounding.products(model, 16))
    assert rounding.largest(model, 16, 2.5, 1000) == rounding.relative(model, 16) * 2.5 * math.sqrt(2 * math.log(1000))


@pytest.mark.parametrize("terms", [1, 128, 7168])
def test_sums_in_any_order_are_within_the_limit_and_one_wrong_product_is_not(terms: int) -> None:
    x, y = np.random.default_rng(1).standard_normal((2, 200, terms), np.float32)
    exact = (x.astype(np.float64) * y).sum(axis=1)
    size = np.sqrt((x.astype(np.float64) ** 2 * y.astype(np.float64) ** 2).sum(axis=1))
    one_after_the_other = np.cumsum(x * y, axis=1, dtype=np.float32)[:, -1]
    assert (np.abs(one_after_the_other - exact) <= limit(terms, size)).all()
    assert (np.abs(exact - x[:, 0] * y[:, 0] - exact) > limit(terms, size)).mean() > 0.9


def changes_the_model(fault: ReaderFault) -> bool:
    return fault.model(bundled_model()) != bundled_model()


@pytest.fixture(scope="module")
def f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rounding") / "f32.gguf"
    convert(hub.BUNDLED, path, "F32")
    return path


@pytest.mark.engine
@pytest.mark.usefixtures("judges")
@pytest.mark.parametrize(
    "fault", [fault for fault in READER_FAULTS if changes_the_model(fault)], ids=lambda fault: fault.name
)
def test_an_engine_that_reads_otherwise_is_found(fault: ReaderFault, f32: Path) -> None:
    """llama.cpp is right and the pass beside it is wrong, which is the same distance."""
    right = gguf_weights(f32)
    wrong = dataclasses.replace(right, model=fault.model(right.model))
    ours = engine.Ours(wrong, TOKENS, Place(threads=2))
    for section in sections(wrong.model):
        ours.run(section)
    results, exact = ours.ask(f32)
    finding = engine.judge(results, exact)
    assert finding is not None
    assert max(result.difference for result in results) > 10 * exact
