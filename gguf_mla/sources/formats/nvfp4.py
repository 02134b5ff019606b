"""NVFP4 weights: 4-bit floats in groups of 16 that share an E4M3 scale, and one scale for the whole tensor.

    ModelOpt             `X.weight` uint8 [M, N/2], `X.weight_scale` E4M3 [M, N/16], `X.weight_scale_2` float32 []
                         value = float · weight_scale · weight_scale_2
    compressed-tensors   `X.weight_packed`, `X.weight_scale` alike, `X.weight_global_scale` float32 [1]
                         value = float · weight_scale / weight_global_scale

A block of ggml's NVFP4 has the same 4 bits and the same group scales, but no place for the tensor's. Where that is 1,
rows are moved bit for bit. Some of llama.cpp's graphs multiply the products of feed-forward weights with a tensor
`NAME.scale`; for those, the rows of such weights can be had bit for bit, too, and `factor` says what belongs there.
Source: ModelOpt's hf_quant_config and compressed-tensors' "nvfp4-pack-quantized".
"""

from __future__ import annotations

import functools
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.sources.formats import Found
from gguf_mla.sources.formats.shared.coded import values_of
from gguf_mla.sources.formats.shared.e2m1 import PACKED_DTYPES, PackedTensor, check_packed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from gguf_mla.sources.safetensors import StoredTensor

METHODS = ("compressed-tensors", "modelopt", "modelopt_fp4")

_SCALED = re.compile(r".*\.mlp\.(.+\.)?(gate|up|down)_proj\.weight")  # whose products engines multiply with `.scale`
_SIGNS = 0x88  # of the two values of a byte
# What holds the codes, what the tensor's scale is called, and what it does.
_KINDS: tuple[tuple[str, str, Callable[[float], float]], ...] = (
    (".weight", ".weight_scale_2", lambda scale: scale),
    (".weight_packed", ".weight_global_scale", lambda scale: 1 / scale if scale else math.inf),
)


class Nvfp4Tensor(PackedTensor):
    """A SourceTensor over rows of NVFP4."""

    stored, ggml, block, group = "NVFP4", "NVFP4", 64, 16

    def __init__(self, name: str, codes: StoredTensor, scale: StoredTensor, factor: Callable[[], float]) -> None:
        super().__init__(name, codes, scale)
        self._factor = factor

    @property
    def raw_type(self) -> str | None:
        """NVFP4 where rows are whole numbers of its blocks, and engines may apply the tensor's scale or it is 1."""
        return super().raw_type if _SCALED.fullmatch(self.name) or self.factor == 1 else None

    @functools.cached_property
    def factor(self) -> float:
        """What `raw` rows are to be multiplied with; InputError for what is not a positive number."""
        factor = self._factor()
        if not 0 < factor < math.inf:
            raise InputError(
                "its scale for the whole tensor cannot be used",
                file=self.codes.file.name,
                tensor=self.name,
                expected="a positive number",
                found=f"{factor:g}",
                remedy="Quantize the original anew",
            )
        return factor

    def multipliers(self, scales: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the scale of each group times that of the tensor."""
        return values_of("F8_E4M3")[scales].astype(np.float64) * self.factor

    def unsigned(
        self, codes: NDArray[np.uint8], scales: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Move the signs of scales, which ggml's have none of, to the values."""
        negative = scales >= 0x80
        if not negative.any():
            return codes, scales
        return codes ^ (negative * np.uint8(_SIGNS)).repeat(self.group // 2, axis=1), scales & np.uint8(0x7F)


def found(stored: Mapping[str, StoredTensor], _quantization: Mapping[str, Any]) -> Found:
    """Join packed weights with both of their scales; InputError where one is missing or does not fit."""
    tensors: dict[str, Nvfp4Tensor] = {}
    used: set[str] = set()
    for suffix, global_suffix, meaning in _KINDS:
        for base in [name.removesuffix(suffix) for name in stored if name.endswith(suffix)]:
            codes, scale = stored[base + suffix], stored.get(base + ".weight_scale")
            if codes.dtype not in PACKED_DTYPES or scale is None or scale.dtype != "F8_E4M3":
                continue
            name, whole = base + ".weight", stored.get(base + global_suffix)
            check_packed(name, codes, scale, Nvfp4Tensor.group)
            tensors[name] = Nvfp4Tensor(name, codes, scale, _factor(name, whole, codes, base + global_suffix, meaning))
            used |= {codes.name, scale.name, base + global_suffix}
    return Found(tensors, frozenset(used))


def _factor(
    name: str,
    whole: StoredTensor | None,
    codes: StoredTensor,
    expected: str,
    meaning: Callable[[float], float],
) -> Callable[[], float]:
    """Return what reads the tensor's scale."""
    if whole is None or whole.dtype != "F32" or math.prod(whole.shape) != 1:
        found = "none" if whole is None else f"{list(whole.shape)} of {whole.dtype}"
        raise InputError(
            "lacks its scale for the whole tensor",
            file=codes.file.name,
            tensor=name,
            expected=f"one F32 number in {expected}",
            found=found,
            remedy="It may lie in a shard that is not there",
        )
    whole.will_read(0, 1)
    return lambda: meaning(float(whole.read().view(np.float32).reshape(-1)[0]))
