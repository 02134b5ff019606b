"""AWQ weights: integers of 4 or 8 bits with zero points, packed along the outputs.

`X.qweight` int32 [K, N/p], `X.qzeros` int32 [K/g, N/p] and `X.scales` [K/g, N] for a weight [N, K]; p integers lie in a
word, and those of 4 bits stand for outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight, of 8 bits for 0, 2, 1, 3 of its four.
value = (integer - zero) · scale, one float32 rounding. Source: AutoAWQ's "gemm" version, and vLLM's for 8 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.sources.formats import Found
from gguf_mla.sources.formats.shared import columns
from gguf_mla.sources.formats.shared.columns import WORD, Parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gguf_mla.sources.safetensors import StoredTensor

METHODS = ("awq", "awq_marlin")

ORDERS = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}


class AwqTensor:
    """A SourceTensor over AWQ's parts; `bits` of an integer, `group` inputs share a scale."""

    raw_type = None  # no ggml type's rows
    values = "F32"

    def __init__(self, name: str, parts: Parts, bits: int) -> None:
        self.name, self._parts, self._bits = name, parts, bits
        inputs, groups = parts.integers.shape[0], parts.scales.shape[0]
        self.shape: tuple[int, ...] = (parts.scales.shape[1], inputs)
        self._group = inputs // groups

    @property
    def stored(self) -> str:
        """The format with its bits and group size."""
        return f"AWQ {self._bits} bit group {self._group}"

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows `start:stop` as float32 [rows, cols]."""
        first, last, _ = slice(start, stop).indices(self.shape[0])
        order, parts = ORDERS[self._bits], self._parts
        integers = columns.packed_columns(parts.integers, first, last, self._bits, order)
        zeros = columns.packed_columns(parts.zeros, first, last, self._bits, order)
        group = np.arange(self.shape[1]) // self._group
        return columns.weighed(integers, zeros, columns.scale_columns(parts.scales, first, last), group)

    def will_read(self, start: int, _stop: int) -> None:
        """Ask the OS to fetch the tensor with its first rows."""
        self._parts.will_read(start)

    def was_read(self, _start: int, stop: int) -> None:
        """Let the OS forget the tensor after its last rows."""
        self._parts.was_read(stop)


def found(stored: Mapping[str, StoredTensor], _quantization: Mapping[str, Any]) -> Found:
    """Join what is packed along the outputs; InputError where its parts do not fit each other."""
    tensors: dict[str, AwqTensor] = {}
    used: set[str] = set()
    for base in [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]:
        name, parts = base + ".weight", columns.parts_of(base, stored)
        outputs = parts.scales.shape[1]
        if parts.integers.shape[1] == outputs:
            continue  # packed along the inputs: GPTQ
        tensors[name] = AwqTensor(name, parts, _bits(name, parts))
        used |= {base + suffix for suffix in (".qweight", ".qzeros", ".scales")}
    return Found(tensors, frozenset(used))


def _bits(name: str, parts: Parts) -> int:
    """Return how many bits an integer has; InputError unless all shapes agree on it."""
    (inputs, words), (groups, outputs) = parts.integers.shape, parts.scales.shape
    bits = WORD * words // outputs
    if bits not in ORDERS or words * WORD != bits * outputs or inputs % groups:
        expected = f"[inputs, {outputs}] packed into {outputs // 8} or {outputs // 4} words a row"
        raise parts.refuse(name, "its qweight has the wrong shape", expected, list(parts.integers.shape))
    if parts.zeros.shape != (groups, words):
        raise parts.refuse(name, "its qzeros have the wrong shape", [groups, words], list(parts.zeros.shape))
    return bits
