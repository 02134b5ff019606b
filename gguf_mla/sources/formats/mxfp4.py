"""MXFP4 weights: 4-bit floats in groups of 32 that share a power of two, as the OCP Microscaling formats have them.

`X.weight` or `X.weight_packed` uint8 (or int8) [M, N/2], and `X.weight_scale` or `X.scale` in E8M0, or E8M0 kept as
uint8, [M, N/32]; value = float · 2^(scale - 127). A block of ggml's MXFP4 is the same, so rows are moved bit for bit.
Source: the OCP Microscaling formats; compressed-tensors' "mxfp4-pack-quantized", Quark's MXFP4, DeepSeek-V4's
experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.sources.formats import Found
from gguf_mla.sources.formats.shared.e2m1 import PACKED_DTYPES, PackedTensor, check_packed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from gguf_mla.sources.safetensors import StoredTensor

METHODS = ("compressed-tensors", "mxfp4", "quark")

_SCALE_DTYPES = ("F8_E8M0", "U8")
_NAMES = ((".weight", ".weight_scale"), (".weight_packed", ".weight_scale"), (".weight", ".scale"))


class Mxfp4Tensor(PackedTensor):
    """A SourceTensor over rows of MXFP4."""

    stored, ggml, block, group = "MXFP4", "MXFP4", 32, 32

    def multipliers(self, scales: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return powers of two; 255 is NaN."""
        powers = np.ldexp(1.0, scales.astype(np.int32) - 127)
        return np.where(scales == 255, np.nan, powers)


def found(stored: Mapping[str, StoredTensor], _quantization: Mapping[str, Any]) -> Found:
    """Join packed weights with scales that are exponents; InputError where they do not fit each other."""
    tensors: dict[str, Mxfp4Tensor] = {}
    used: set[str] = set()
    for codes, scale, name in _pairs(stored):
        check_packed(name, codes, scale, Mxfp4Tensor.group)
        tensors[name] = Mxfp4Tensor(name, codes, scale)
        used.update((codes.name, scale.name, name + "_shape"))
    return Found(tensors, frozenset(used))


def _pairs(stored: Mapping[str, StoredTensor]) -> Iterator[tuple[StoredTensor, StoredTensor, str]]:
    packed = [(name, tensor) for name, tensor in stored.items() if tensor.dtype in PACKED_DTYPES]
    for codes, scales in _NAMES:
        for name, tensor in packed:
            if name.endswith(codes):
                base = name.removesuffix(codes)
                if (scale := stored.get(base + scales)) is not None and scale.dtype in _SCALE_DTYPES:
                    yield tensor, scale, base + ".weight"
