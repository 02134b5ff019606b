"""Weights as 4-bit floats, two in a byte, in groups that share a scale: what MXFP4 and NVFP4 have in common.

A 4-bit float has a sign, two exponent bits and one of fraction: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. The low
half of a byte is the value that comes first. ggml's blocks hold the same 4 bits in another order: of a group of 2n
values byte i has values i and i + n.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.sources.formats.shared.coded import check_finite
from gguf_mla.sources.formats.shared.parts import InParts
from gguf_mla.sources.tensor import Raw

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.sources.safetensors import StoredTensor

PACKED_DTYPES = ("U8", "I8")


class PackedTensor(InParts, ABC):
    """A SourceTensor over rows of 4-bit floats; a format says what its scales mean and which ggml type holds them.

    codes   uint8 [M, N/2]
    scale   a byte for each group, [M, N/group]
    """

    values = "F32"
    stored = "FP4"
    ggml = ""  # the ggml type of the same bits
    block, group = 0, 0  # values in a block of that type, and in a group

    def __init__(self, name: str, codes: StoredTensor, scale: StoredTensor) -> None:
        self.name, self.codes, self.scale = name, codes, scale
        self.by_rows = codes, scale
        self.shape: tuple[int, ...] = (*codes.shape[:-1], 2 * codes.shape[-1])

    @property
    def raw_type(self) -> str | None:
        """The ggml type that holds the same bits, where rows are whole numbers of its blocks."""
        return self.ggml if self.shape[-1] % self.block == 0 else None

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows `start:stop` as float32 [rows, cols], each value exact and rounded once."""
        from gguf_mla.sources.formats.shared import kernels  # noqa: PLC0415 - only those who decode pay for numba

        codes, scales = self.codes.read(start, stop), self.scale.read(start, stop)
        out = np.empty((len(codes), self.shape[-1]), np.float32)
        kernels.decode_e2m1(codes, self.multipliers(scales), self.group, out)
        return out

    def raw(self, start: int, stop: int) -> Raw:
        """Return rows `start:stop` as the ggml type, bits moved; InputError for a scale that is not a number."""
        from gguf_mla.sources.formats.shared import kernels  # noqa: PLC0415 - as above

        codes, scales = self.codes.read(start, stop), self.scale.read(start, stop)
        self.check_scales(scales, start)
        codes, scales = self.unsigned(codes, scales)
        codes = codes.reshape(-1, self.block // 2)
        scales = scales.reshape(len(codes), -1)
        out = np.empty((len(codes), scales.shape[1] + self.block // 2), np.uint8)
        kernels.repack_halves(codes, scales, self.group // 2, out)
        return Raw(out.reshape(-1))

    @abstractmethod
    def multipliers(self, scales: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return what stored scales mean, float64 of the same shape, NaN where they mean nothing."""

    def unsigned(
        self, codes: NDArray[np.uint8], scales: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the same values with scales that the ggml type can hold."""
        return codes, scales

    def check_scales(self, scales: NDArray[np.uint8], start: int) -> None:
        """Raise InputError for the first scale that is not a number."""
        check_finite(self.multipliers(scales), self.scale, start, "NaN")


def check_packed(name: str, codes: StoredTensor, scale: StoredTensor, group: int) -> None:
    """Raise InputError unless codes [M, N/2] and scales [M, N/group] fit each other."""

    def refuse(what: str, expected: object, found: object) -> InputError:
        return InputError(what, file=codes.file.name, tensor=name, expected=expected, found=found)

    if len(codes.shape) != 2:
        raise refuse("is packed and not a matrix", "2 dimensions", list(codes.shape))
    if 2 * codes.shape[1] % group:
        raise refuse("has rows that are not a whole number of groups", f"a multiple of {group}", 2 * codes.shape[1])
    expected = [codes.shape[0], 2 * codes.shape[1] // group]
    if list(scale.shape) != expected:
        raise refuse(f"its scales {scale.name} have the wrong shape", expected, list(scale.shape))
