"""Sums over the rows of a matrix, in float64: on the CPU by a kernel, in the order of the rows, elsewhere by torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from gguf_mla.codec.kernel_cache import kernel
from gguf_mla.forward.place import workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]
    Floats = NDArray[np.float32]
    Tensor = torch.Tensor

PIECE = 1 << 18  # values that torch squares at a time, and fewer are not worth another thread
COLUMNS = 512  # whose sums stay in the fastest cache


def sums_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of squares and of values over rows [N, cols], float64 [cols], where the rows lie.

    On the CPU the bits depend neither on the threads nor on how the rows lie in memory.
    """
    if rows.device.type == "cpu":
        return _compiled(rows)
    squares, plain = torch.zeros(2, rows.shape[1], dtype=torch.float64, device=rows.device)
    for piece in rows.split(max(1, PIECE // rows.shape[1])):
        exact = piece.double()
        plain += exact.sum(dim=0)
        squares += exact.square_().sum(dim=0)
    return squares, plain


def _compiled(rows: Tensor) -> tuple[Tensor, Tensor]:
    count, cols = rows.shape
    squares, plain = np.zeros((2, cols))
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    step = rows.stride(0) if count > 1 else cols
    flat = rows.as_strided(((count - 1) * step + cols if count else 0,), (1,)).numpy()

    def add(first: int) -> None:
        add_rows(flat, count, step, first, min(first + COLUMNS, cols), squares, plain)

    threads = min(torch.get_num_threads(), rows.numel() // PIECE)
    if threads < 2:
        for first in range(0, cols, COLUMNS):
            add(first)
    else:
        list(workers(threads).map(add, range(0, cols, COLUMNS)))
    return torch.from_numpy(squares), torch.from_numpy(plain)


@kernel(nogil=True)
def add_rows(flat: Floats, count: int, step: int, first: int, last: int, squares: Doubles, plain: Doubles) -> None:
    """Add columns `first` to `last` of `count` rows, of which each begins `step` values after the one before."""
    row = 0
    while row + 4 <= count:  # four at a time, so that sums are loaded and stored seldom; the order is that of the rows
        a, b, c, d = flat[row * step :], flat[(row + 1) * step :], flat[(row + 2) * step :], flat[(row + 3) * step :]
        for i in range(first, last):
            p, q, r, s = np.float64(a[i]), np.float64(b[i]), np.float64(c[i]), np.float64(d[i])
            squares[i] = (((squares[i] + p * p) + q * q) + r * r) + s * s
            plain[i] = (((plain[i] + p) + q) + r) + s
        row += 4
    while row < count:
        a = flat[row * step :]
        for i in range(first, last):
            p = np.float64(a[i])
            squares[i] += p * p
            plain[i] += p
        row += 1
