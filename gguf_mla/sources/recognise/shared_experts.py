"""A model of routed experts without shared ones. Readers of these files want the tensors of one: it is given of zeros.

What an expert of zeros adds is zero, so nothing changes. Its rows lie in no file and take no memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.files.bounds import ROW_VALUES
from gguf_mla.sources.recognise.reading import FLOATS
from gguf_mla.sources.safetensors import StoredTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.sources.recognise.reading import Reading

COUNT = "n_shared_experts"
_ROUTER = re.compile(r"(model\.layers\.\d+\.mlp\.)gate\.weight")


@dataclass(frozen=True, slots=True)
class Zeros(StoredTensor):
    """A tensor of zeros; `file` is that of the router beside it."""

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the bytes of rows `start:stop` as uint8 [rows, row_bytes]."""
        first, last, _ = slice(start, stop).indices(self.rows)
        return np.zeros((last - first, self.row_bytes), np.uint8)

    def will_read(self, start: int, stop: int) -> None:
        """Do nothing: there is nothing to fetch."""

    def was_read(self, start: int, stop: int) -> None:
        """Do nothing."""


def recognise(reading: Reading) -> Reading:
    """Return the reading with a shared expert of zeros in every layer whose router has none beside it."""
    config = reading.config
    if config.get(COUNT) not in (None, 0) or not config.get("n_routed_experts"):
        return reading
    hidden, inner = config.get("hidden_size"), config.get("moe_intermediate_size")
    if not isinstance(hidden, int) or not isinstance(inner, int) or not (_is_size(hidden) and _is_size(inner)):
        return reading
    if any(".shared_experts." in name for name in reading.stored):
        return reading
    routers = {found[1]: tensor for name, tensor in reading.stored.items() if (found := _ROUTER.fullmatch(name))}
    if not routers:
        return reading
    shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    added = {
        name: Zeros(name, tensor.dtype if tensor.dtype in FLOATS else "BF16", shape, 0, 0, tensor.file)
        for prefix, tensor in routers.items()
        for part, shape in shapes.items()
        for name in [f"{prefix}shared_experts.{part}.weight"]
    }
    note = (
        "shared experts: the model has none, but readers of its files want one; an expert of zeros is written into "
        f"{len(routers)} layers, which changes nothing."
    )
    return replace(reading, stored={**reading.stored, **added}).configured(**{COUNT: 1}).noted(note)


def _is_size(value: int) -> bool:
    return 0 < value <= ROW_VALUES
