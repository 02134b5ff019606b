"""Tensors in memory as sources of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_mla import codec
from gguf_mla.sources.tensor import Raw

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray


@dataclass
class Memory:
    """A SourceTensor in memory; reading may fail or block at a row."""

    array: NDArray[np.float32]
    name: str = "w"
    stored: str = "F32"
    raw_type: str | None = None
    values: str = "F32"
    fail: BaseException | None = None
    fail_at: int = -1
    rows_read: int = 0
    rows_dropped: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(self, start: int, stop: int) -> NDArray[Any]:
        if self.fail is not None and start <= self.fail_at < stop:
            raise self.fail
        self.rows_read += stop - start
        return self.array[start:stop].copy()

    def will_read(self, start: int, stop: int) -> None:
        pass

    def was_read(self, start: int, stop: int) -> None:
        self.rows_dropped += stop - start


class Encoded(Memory):
    """A source of encoded rows."""

    def __init__(self, rows: NDArray[np.uint8], kind: str) -> None:
        super().__init__(codec.decode(rows, kind), stored=kind, raw_type=kind)
        self.rows = rows

    def read_raw(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        return self.rows[start:stop]

    def raw(self, start: int, stop: int) -> Raw:
        return Raw(self.rows[start:stop].copy())


@dataclass(frozen=True)
class Weights:
    """Importance in memory: rows by tensor."""

    known: Mapping[str, NDArray[np.float32]]
    literal: bool = False

    @property
    def identity(self) -> dict[str, list[list[float]]]:
        return {name: rows.tolist() for name, rows in self.known.items()}

    def rows(self, name: str, _shape: tuple[int, ...], /) -> NDArray[np.float32] | None:
        return self.known.get(name)
