"""Marks of several tools at once: a small number of the combinations that `tests.inputs.combinations` tries."""

from __future__ import annotations

from tests.inputs.combinations import run


def test_combinations_are_read_right_or_refused() -> None:
    outcome = run(300, 1)
    assert outcome["read"] > 100
    assert outcome["refused"] > 30
