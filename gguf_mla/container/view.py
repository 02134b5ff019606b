"""A tensor as a user of the library reads it: numbers, or the bytes that are stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    Rows = Callable[[int, int | None], NDArray[Any]]


@dataclass(frozen=True)
class Tensor:
    """A stored tensor, whatever it is stored in; all dimensions but the last count as rows, a vector is one row.

    name   in its file
    shape  slowest dimension first
    type   how it is stored: "Q4_K", "BF16", "FP8 128x128"
    """

    name: str
    shape: tuple[int, ...]
    type: str
    _values: Rows = field(repr=False, compare=False)
    _raw: Rows = field(repr=False, compare=False)

    def values(self, start: int | None = None, stop: int | None = None) -> NDArray[np.float32]:
        """Return the numbers as float32: all in the tensor's shape, or rows `start:stop` as [rows, cols]."""
        found = self._values(start or 0, stop)
        return found.reshape(self.shape) if start is None and stop is None else found

    def raw(self, start: int | None = None, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the stored bytes of rows `start:stop`, by default all: uint8 [rows, row_bytes].

        InputError where the numbers are more than these bytes: codes whose scales lie elsewhere.
        """
        return self._raw(start or 0, stop)
