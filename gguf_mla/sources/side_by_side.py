"""Two matrices that a file holds as one: DeepSeek-V4's e_proj and h_proj, [hidden, hidden] each, are others' eh_proj.

The columns of the second come after those of the first: eh_proj·(e, h) = e_proj·e + h_proj·h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.ggtypes.shared import floats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gguf_mla.sources.tensor import SourceTensor

FIRST, SECOND, WHOLE = ".e_proj.weight", ".h_proj.weight", ".eh_proj.weight"


@dataclass(frozen=True)
class SideBySide:
    """A SourceTensor of rows that begin in one tensor and end in another."""

    name: str
    first: SourceTensor
    second: SourceTensor

    raw_type = None  # rows of two tensors are not copied

    @property
    def shape(self) -> tuple[int, ...]:
        """The rows of each, and the columns of both."""
        return (*self.first.shape[:-1], self.first.shape[-1] + self.second.shape[-1])

    @property
    def stored(self) -> str:
        """How the first is stored."""
        return self.first.stored

    @property
    def values(self) -> str:
        """What both are read as; float32 where they differ."""
        return self.first.values if self.first.values == self.second.values else "F32"

    @property
    def needs(self) -> tuple[Any, ...]:
        """What kernels reading them takes."""
        return (*getattr(self.first, "needs", ()), *getattr(self.second, "needs", ()))

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows `start:stop`, [rows, cols]."""
        return np.concatenate([self._of(part, start, stop) for part in (self.first, self.second)], axis=1)

    def _of(self, part: SourceTensor, start: int, stop: int | None) -> NDArray[Any]:
        found = part.read(start, stop)
        return found if part.values == self.values else floats.to_float32(found, part.values)

    def will_read(self, start: int, stop: int) -> None:
        """Say that rows `start:stop` of both are wanted soon."""
        self.first.will_read(start, stop)
        self.second.will_read(start, stop)

    def was_read(self, start: int, stop: int) -> None:
        """Say that rows `start:stop` of both will not be wanted again."""
        self.first.was_read(start, stop)
        self.second.was_read(start, stop)


def joined(tensors: Mapping[str, SourceTensor]) -> Mapping[str, SourceTensor]:
    """Return the tensors with each such pair as one; InputError for halves that have not the same rows."""
    bases = [name.removesuffix(FIRST) for name in tensors if name.endswith(FIRST)]
    pairs = {base: (tensors[base + FIRST], tensors[base + SECOND]) for base in bases if base + SECOND in tensors}
    if not pairs:
        return tensors
    for first, second in pairs.values():
        if len(first.shape) != 2 or first.shape[:-1] != second.shape[:-1]:
            expected, found = list(first.shape), list(second.shape)
            raise InputError("does not go with e_proj", tensor=second.name, expected=expected, found=found)
    halves = {base + half for base in pairs for half in (FIRST, SECOND)}
    whole = {base + WHOLE: SideBySide(base + WHOLE, *pair) for base, pair in pairs.items()}
    return {name: tensor for name, tensor in tensors.items() if name not in halves} | whole


def whole_name(name: str) -> str:
    """Return the name of what a tensor is a half of; its own where it is none."""
    half = next((half for half in (FIRST, SECOND) if name.endswith(half)), None)
    return name if half is None else name.removesuffix(half) + WHOLE
