"""What the tests measure with can fail."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support.close import close, close_together, same_best, within
from tests.support.command import measure
from tests.support.work import Work

if TYPE_CHECKING:
    from pathlib import Path

ONES = np.ones(5, np.float32)


def test_what_is_further_apart_than_its_limit_is_not_close() -> None:
    close(ONES + np.float32(2**-20), ONES, 16, 1.0)
    with pytest.raises(AssertionError, match="2 times the limit"):
        close(ONES + np.float32(2**-19), ONES, 16, 1.0)
    with pytest.raises(AssertionError):
        close_together(ONES + np.float32(2**-19), ONES, 16)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_is_not_close(value: float) -> None:
    wrong = np.where(np.arange(5) == 3, np.float32(value), ONES)
    for found, expected in ((wrong, ONES), (ONES, wrong)):
        with pytest.raises(AssertionError):
            within(found, expected, 1.0)


def test_the_best_are_compared_where_they_can_be_told_apart() -> None:
    rows = np.tile(np.float32([0, 3, 1]), (20, 1))
    tied = rows.copy()
    tied[4] = [2.99, 3, 1]
    same_best(tied.copy(), tied, 0.1)
    other = tied.copy()
    other[4, 0] = 3.01
    same_best(other, tied, 0.1)
    other[5, 0] = 4
    with pytest.raises(AssertionError):
        same_best(other, tied, 0.1)
    with pytest.raises(AssertionError):
        same_best(rows, rows, 1.5)  # nothing is told apart


def test_calls_are_counted() -> None:
    with Work() as few:
        sum(map(abs, range(3)))
    with Work() as many:
        for number in range(1000):
            abs(number)
    assert few.calls < 10
    assert 1000 <= many.calls < 1010


def test_bytes_that_a_process_reads_are_counted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(9_000_000))
    reads = [
        measure(
            [sys.executable, "-c", f"open({str(tmp_path / 'file')!r}, 'rb').read({count})"], tmp_path / "report"
        ).read
        for count in (0, 9_000_000)
    ]
    assert 9_000_000 <= reads[1] - reads[0] < 9_100_000
