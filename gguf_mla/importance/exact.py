"""Sums that come out the same in whatever order they are added.

A number is kept as a multiple of 2^-10 and a remainder, a multiple of 2^-62 below 2^-10: both are float64, and adding
two such numbers rounds nothing while the whole stays below 2^43, which is 9·10^12. Beyond, it is as exact as a float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

UNIT, GRID = 2.0**10, 2.0**52  # one by the whole's step, and by that of the remainder within it


class Exact(NamedTuple):
    """Numbers of any shape: `whole`, multiples of 2^-10, and `rest`, at least 0 and below 2^-10."""

    whole: Doubles
    rest: Doubles

    @classmethod
    def of(cls, values: Doubles) -> Exact:
        """Return float64 values rounded to multiples of 2^-62; those that are not finite stay as they are."""
        with np.errstate(invalid="ignore"):
            scaled = values * UNIT
            whole = np.floor(scaled)
            rest = np.where(np.isfinite(values), np.rint((scaled - whole) * GRID) / GRID, 0.0)
        return cls(np.zeros_like(values), np.zeros_like(values)).plus(whole, rest)

    def __add__(self, other: object) -> Exact:
        """Return the sums."""
        assert isinstance(other, Exact)  # noqa: S101 - nothing else is added
        return self.plus(other.whole * UNIT, other.rest * UNIT)

    def plus(self, whole: Doubles, rest: Doubles) -> Exact:
        """Return the sums with numbers that are given in steps of 2^-10, whole ones and parts of one."""
        total = self.rest * UNIT + rest
        carry = np.floor(total)
        return Exact((self.whole * UNIT + whole + carry) / UNIT, (total - carry) / UNIT)

    def rounded(self) -> NDArray[np.float32]:
        """Return the values as float32, infinite where they are too large for it."""
        with np.errstate(over="ignore"):
            return (self.whole + self.rest).astype(np.float32)


@dataclass(frozen=True)
class Sums:
    """What is known of a tensor: sums of squares and of values [n, cols], and the tokens added [n] or [1]."""

    squares: Exact
    plain: Exact
    counts: NDArray[np.float64]

    def __add__(self, other: Sums) -> Sums:
        """Return those of both."""
        return Sums(self.squares + other.squares, self.plain + other.plain, self.counts + other.counts)

    def rounded(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Return squares, counts and plain sums as a matrix stores them."""
        return self.squares.rounded(), self.counts.astype(np.float32), self.plain.rounded()

    def stored(self) -> tuple[NDArray[Any], ...]:
        """Return the arrays of a part, in the order of SUFFIXES."""
        return self.squares.whole, self.squares.rest, self.counts, self.plain.whole, self.plain.rest
