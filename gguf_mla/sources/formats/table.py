"""Tables of whole numbers: which experts a token takes by its id, in DeepSeek-V4. They are moved as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.sources.formats import Found
from gguf_mla.sources.tensor import Raw

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gguf_mla.sources.safetensors import StoredTensor

METHODS = ("fp8",)  # what else is in a checkpoint that has them
NAMES = (".tid2eid",)


@dataclass(frozen=True)
class TableTensor:
    """A SourceTensor over rows of I32."""

    table: StoredTensor

    raw_type, stored, values = "I32", "I32", "F32"

    @property
    def name(self) -> str:
        """The name in the checkpoint."""
        return self.table.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, slowest first."""
        return self.table.shape

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows `start:stop` as float32."""
        return self.table.read(start, stop).view(np.int32).astype(np.float32)

    def raw(self, start: int, stop: int) -> Raw:
        """Return rows `start:stop` as they are."""
        return Raw(self.table.read(start, stop).reshape(-1))

    def will_read(self, start: int, stop: int) -> None:
        """Ask the OS to fetch rows `start:stop`."""
        self.table.will_read(start, stop)

    def was_read(self, start: int, stop: int) -> None:
        """Let the OS forget rows `start:stop`."""
        self.table.was_read(start, stop)


def found(stored: Mapping[str, StoredTensor], _quantization: Mapping[str, Any]) -> Found:
    """Return the tables."""
    tables = {n: TableTensor(t) for n, t in stored.items() if t.dtype == "I32" and n.endswith(NAMES)}
    return Found(tables, frozenset(tables))
