"""NaN and infinity in what was read, found before anything is made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import SAVED_SO, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.sources.tensor import SourceTensor


PIECE_VALUES = 1 << 15  # looked at together: what is made of them stays in the cache, where fresh memory costs faults


def check_finite(values: NDArray[Any], first_row: int, source: SourceTensor) -> None:
    """Raise InputError for the first NaN or infinity among rows [rows, cols] as `source.read` gave them."""
    flat = values.reshape(-1)
    for begin in range(0, flat.size, PIECE_VALUES):
        finite = _is_finite(flat[begin : begin + PIECE_VALUES], source.values)
        if not finite.all():
            row, col = divmod(begin + int(np.argmin(finite)), values.shape[-1])
            raise InputError(
                "has a weight that is not a finite number",
                tensor=source.name,
                expected="finite weights",
                found=f"NaN or Inf at row {first_row + row}, column {col}",
                remedy=SAVED_SO,
            )


def _is_finite(values: NDArray[Any], kind: str) -> NDArray[np.bool_]:
    # A BF16 pattern with an exponent of all ones is Inf or NaN.
    finite: NDArray[np.bool_] = (values & 0x7F80) != 0x7F80 if kind == "BF16" else np.isfinite(values)
    return finite
