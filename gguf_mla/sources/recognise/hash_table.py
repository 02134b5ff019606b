"""Tables that say which experts a token takes by its id (DeepSeek-V4's first layers): read as I32, every id checked.

Engines look experts up by these numbers without looking at them, so one that is no expert reads beyond the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.sources.formats.shared.stored_shape import INTEGERS
from gguf_mla.sources.formats.table import NAMES
from gguf_mla.sources.safetensors import StoredTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.sources.recognise.reading import Reading


@dataclass(frozen=True, slots=True)
class Table(StoredTensor):
    """A table [tokens, experts of a token], I32 for its readers; `stored` as it lies in the file.

    `experts` is how many there are.
    """

    stored: StoredTensor
    experts: int

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return rows `start:stop` as bytes of I32 [rows, row_bytes]; InputError for a number that is no expert."""
        ids: NDArray[np.int64] = self.stored.read(start, stop).view(INTEGERS[self.stored.dtype])
        wrong = (ids < 0) | (ids >= self.experts)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise InputError(
                f"sends token {start + row} to an expert that is not there",
                file=self.file.name,
                tensor=self.name,
                expected=f"0 to {self.experts - 1}",
                found=int(ids[row, column]),
                remedy="The table and n_routed_experts belong to different models",
            )
        return ids.astype(np.int32).view(np.uint8)

    def will_read(self, start: int, stop: int) -> None:
        """Ask the OS to fetch rows `start:stop`."""
        self.stored.will_read(start, stop)

    def was_read(self, start: int, stop: int) -> None:
        """Let the OS forget rows `start:stop`."""
        self.stored.was_read(start, stop)


def recognise(reading: Reading) -> Reading:
    """Return the reading with its tables as I32."""
    experts = reading.config.get("n_routed_experts")
    if type(experts) is not int:
        return reading
    tables = {
        name: Table(name, "I32", tensor.shape, tensor.offset, tensor.nbytes, tensor.file, tensor, experts)
        for name, tensor in reading.stored.items()
        if name.endswith(NAMES) and tensor.dtype in INTEGERS
    }
    return replace(reading, stored={**reading.stored, **tables}) if tables else reading
