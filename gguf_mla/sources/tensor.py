"""What a plan reads from: a tensor as a matrix of rows, whatever file and format it lies in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gguf_mla.files.readable import Readable


@dataclass(frozen=True)
class FileRange:
    """Bytes that lie in a file as they are wanted, so that the OS can copy them: `nbytes` at `offset`."""

    file: Readable
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Raw:
    """Rows as a ggml type stores them; `remarks` is what reading them has shown, as plain data."""

    data: NDArray[np.uint8] | FileRange
    remarks: tuple[Any, ...] = ()


class SourceTensor(Protocol):
    """A stored tensor, read by rows; all dimensions but the last count as rows, a vector is one row."""

    @property
    def name(self) -> str:
        """The name in its file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, slowest first."""

    @property
    def stored(self) -> str:
        """How it is stored, for people: "BF16", "FP8 128x128"."""

    @property
    def raw_type(self) -> str | None:
        """The block type whose rows the stored bytes are, or rearranged become; None for what is read and checked."""

    @property
    def values(self) -> str:
        """What `read` returns: "F32", "F16" or "BF16"."""

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows `start:stop`, by default all: float32, float16, or BF16 bit patterns as uint16, [rows, cols]."""

    def will_read(self, start: int, stop: int) -> None:
        """Say that rows `start:stop` are wanted soon."""

    def was_read(self, start: int, stop: int) -> None:
        """Say that rows `start:stop` will not be wanted again."""


class RawSource(SourceTensor, Protocol):
    """A tensor whose rows can be had undecoded: those of a ggml type, or rearranged into one."""

    def raw(self, start: int, stop: int) -> Raw:
        """Return rows `start:stop` as `raw_type`; only where that is set."""


@runtime_checkable
class BlockSource(SourceTensor, Protocol):
    """A tensor that can be read as it is stored: the rows of a ggml type, `raw_type`."""

    def read_raw(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the bytes of rows `start:stop`, uint8 [rows, row_bytes]; only where `raw_type` is set."""
