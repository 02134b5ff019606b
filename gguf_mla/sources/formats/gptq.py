"""GPTQ weights: integers of 2, 4 or 8 bits with zero points, packed along the inputs.

For a weight [N, K]: `X.qweight` int32 [K/p, N], p integers in a word, the first in the lowest bits; `X.qzeros` int32
[groups, N/p], packed along the outputs; `X.scales` [groups, N]; `X.g_idx` int32 [K], the group of each input, which
desc_act mixes; without it groups follow each other. value = (integer - zero) · scale, one float32 rounding.

The zero points of checkpoint_format "gptq", the older one and the default, are stored one less than they are, so that
the sum is taken modulo 2^bits; those of "gptq_v2" are stored as they are. Source: AutoGPTQ and GPTQModel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import SAVED_SO, InputError
from gguf_mla.sources.formats import Found
from gguf_mla.sources.formats.shared import columns
from gguf_mla.sources.formats.shared.columns import WORD, Parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gguf_mla.sources.safetensors import StoredTensor

METHODS = ("gptq", "gptq_marlin")

BITS = (2, 4, 8)
FORMATS = {None: 1, "": 1, "gptq": 1, "gptq_v2": 0}  # what is added to a stored zero point


class GptqTensor:
    """A SourceTensor over GPTQ's parts; `bits` of an integer, `added` to every zero point."""

    raw_type = None  # no ggml type's rows
    values = "F32"

    def __init__(self, name: str, parts: Parts, bits: int, added: int) -> None:
        self.name, self._parts, self._bits, self._added = name, parts, bits, added
        self.shape: tuple[int, ...] = (parts.scales.shape[1], parts.integers.shape[0] * (WORD // bits))
        self._group = -(-self.shape[1] // parts.scales.shape[0])

    @property
    def stored(self) -> str:
        """The format with its bits and group size."""
        return f"GPTQ {self._bits} bit group {self._group}"

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows `start:stop` as float32 [rows, cols]; InputError for an input whose group does not exist."""
        first, last, _ = slice(start, stop).indices(self.shape[0])
        bits, parts, mask = self._bits, self._parts, (1 << self._bits) - 1
        words = columns.columns(parts.integers, first, last, 4).view("<u4")
        shifts = np.arange(0, WORD, bits, dtype=np.uint32)[:, None]
        integers = (words[:, None, :] >> shifts & np.uint32(mask)).astype(np.uint8).reshape(self.shape[1], -1)
        zeros = columns.packed_columns(parts.zeros, first, last, bits, range(WORD // bits))
        zeros = (zeros.astype(np.uint16) + self._added & mask).astype(np.uint8)
        return columns.weighed(integers, zeros, columns.scale_columns(parts.scales, first, last), self._groups())

    def _groups(self) -> NDArray[np.intp]:
        stored, count = self._parts.group, self._parts.scales.shape[0]
        if stored is None:
            return np.arange(self.shape[1]) // self._group
        group = stored.read().view("<i4").reshape(-1).astype(np.intp)
        if group.min() < 0 or group.max() >= count:
            wrong = int(np.argmax((group < 0) | (group >= count)))
            raise InputError(
                f"puts input {wrong} into a group that does not exist",
                file=stored.file.name,
                tensor=stored.name,
                expected=f"0 to {count - 1}",
                found=int(group[wrong]),
                remedy=SAVED_SO,
            )
        return group

    def will_read(self, start: int, _stop: int) -> None:
        """Ask the OS to fetch the tensor with its first rows."""
        self._parts.will_read(start)

    def was_read(self, _start: int, stop: int) -> None:
        """Let the OS forget the tensor after its last rows."""
        self._parts.was_read(stop)


def found(stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any]) -> Found:
    """Join what is packed along the inputs; InputError where its parts do not fit each other."""
    tensors: dict[str, GptqTensor] = {}
    used: set[str] = set()
    for base in [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]:
        name, parts = base + ".weight", columns.parts_of(base, stored)
        tensors[name] = GptqTensor(name, parts, _bits(name, parts), _added(quantization))
        used |= {base + suffix for suffix in (".qweight", ".qzeros", ".scales", ".g_idx")}
    return Found(tensors, frozenset(used))


def _added(quantization: Mapping[str, Any]) -> int:
    form = quantization.get("checkpoint_format")
    if not isinstance(form, str | None) or form not in FORMATS:
        raise InputError(
            "config.json: quantization_config.checkpoint_format is not supported",
            expected="gptq or gptq_v2",
            found=form,
            remedy="Convert from the original checkpoint, or save this one as gptq_v2",
        )
    return FORMATS[form]


def _bits(name: str, parts: Parts) -> int:
    """Return how many bits an integer has; InputError unless all shapes agree on it."""
    (words, outputs), (groups, columns_) = parts.integers.shape, parts.scales.shape
    if outputs != columns_:
        raise parts.refuse(name, "its scales have the wrong shape", f"[groups, {outputs}]", list(parts.scales.shape))
    bits = WORD * parts.zeros.shape[1] // outputs
    if bits not in BITS or parts.zeros.shape != (groups, outputs * bits // WORD) or outputs * bits % WORD:
        expected = f"[{groups}, {outputs}] packed as 2, 4 or 8 bits"
        raise parts.refuse(name, "its qzeros have the wrong shape", expected, list(parts.zeros.shape))
    inputs = words * (WORD // bits)
    if groups > inputs:
        raise parts.refuse(name, "it has more groups than inputs", f"at most {inputs}", groups)
    if parts.group is not None and (parts.group.dtype != "I32" or parts.group.shape != (inputs,)):
        found = f"{list(parts.group.shape)} of {parts.group.dtype}"
        raise parts.refuse(name, "its g_idx has the wrong shape", f"[{inputs}] of I32", found)
    return bits
