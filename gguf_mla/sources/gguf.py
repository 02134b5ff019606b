"""Tensors of a GGUF file as sources of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla import codec
from gguf_mla.codec.ahead import Need, to_decode
from gguf_mla.container.writer import PIECE_BYTES
from gguf_mla.sources.tensor import FileRange, Raw

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gguf_mla.container.reader import GgufFile, GgufTensor

_FLOATS: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


@dataclass(frozen=True)
class GgufSource:
    """A SourceTensor over a GGUF tensor: floats as stored, everything else decoded to float32."""

    tensor: GgufTensor

    @property
    def name(self) -> str:
        """The name in the file."""
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, slowest first."""
        return self.tensor.shape

    @property
    def stored(self) -> str:
        """The ggml type."""
        return self.tensor.type

    @property
    def raw_type(self) -> str | None:
        """The ggml type, None for floats."""
        return None if self.tensor.type in _FLOATS else self.tensor.type

    @property
    def values(self) -> str:
        """What `read` returns: the stored float type, or "F32"."""
        return self.tensor.type if self.tensor.type in _FLOATS else "F32"

    @property
    def needs(self) -> tuple[Need, ...]:
        """The kernels that `read` needs."""
        return (to_decode(self.raw_type),) if self.raw_type else ()

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows `start:stop` as values."""
        rows = self.tensor.read(start, stop)
        return codec.decode(rows, self.raw_type) if self.raw_type else rows.view(_FLOATS[self.values])

    def read_raw(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the stored bytes of rows `start:stop`."""
        return self.tensor.read(start, stop)

    def raw(self, start: int, stop: int) -> Raw:
        """Return where the stored bytes of rows `start:stop` lie."""
        if (foreign := self.tensor.foreign) is not None:
            begin, end = start * PIECE_BYTES, min(stop * PIECE_BYTES, foreign.nbytes)
            return Raw(FileRange(self.tensor.file, self.tensor.offset + begin, end - begin))
        size = self.tensor.row_bytes
        return Raw(FileRange(self.tensor.file, self.tensor.offset + start * size, (stop - start) * size))

    def will_read(self, start: int, stop: int) -> None:
        """Ask the OS to fetch rows `start:stop`."""
        if self.tensor.foreign is None:
            self.tensor.will_read(start, stop)

    def was_read(self, start: int, stop: int) -> None:
        """Let the OS forget rows `start:stop`."""
        if self.tensor.foreign is None:
            self.tensor.was_read(start, stop)


def sources(file: GgufFile) -> Mapping[str, GgufSource]:
    """Return every tensor of a file as a source."""
    return {name: GgufSource(tensor) for name, tensor in file.tensors.items()}
