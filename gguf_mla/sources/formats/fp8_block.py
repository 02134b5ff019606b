"""FP8 e4m3 weights with one scale per block, as DeepSeek-V3 is published.

`X.weight` float8_e4m3fn [M, N] and `X.weight_scale_inv` [⌈M/128⌉, ⌈N/128⌉] in float32, E8M0, or E8M0 kept as uint8;
value = weight · scale of its block (multiplied, despite the name), one float32 rounding. The last block of a row or
column may be partial. Integers of 8 bits are stored likewise (blockwise_int8), and a single scale stands for all.
Source: quantization_config.weight_block_size and DeepSeek-V3's weight description.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError
from gguf_mla.sources.formats import Found
from gguf_mla.sources.formats.shared.coded import CODES, CodedTensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gguf_mla.sources.safetensors import StoredTensor

METHODS = ("fp8", "blockwise_int8")
SCALE_SUFFIX = "_scale_inv"

_FORMATS = (None, "e4m3", "float8_e4m3fn")
_SCALE_DTYPES = ("F32", "BF16", "F8_E8M0", "U8")
_WORDS = {"F8_E4M3": "FP8", "I8": "INT8"}


def found(stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any]) -> Found:
    """Join every weight of 8 bits with its scales; InputError when an FP8 weight of this method lacks them."""
    coded = [name for name, tensor in stored.items() if tensor.dtype in CODES and name + SCALE_SUFFIX in stored]
    tensors = {name: _joined(stored[name], stored[name + SCALE_SUFFIX], quantization) for name in coded}
    return Found(tensors, frozenset({*coded, *(name + SCALE_SUFFIX for name in coded)}))


def _joined(weight: StoredTensor, scale: StoredTensor, quantization: Mapping[str, Any]) -> CodedTensor:
    word = _WORDS[weight.dtype]
    if math.prod(scale.shape) == 1 and weight.rows and scale.dtype in _SCALE_DTYPES:
        return CodedTensor(weight, scale, (max(2, weight.rows), max(1, weight.shape[-1])), f"{word} per tensor")
    block = _block_size(quantization)
    _check(weight, scale, block)
    return CodedTensor(weight, scale, block, f"{word} {block[0]}x{block[1]}")


def _block_size(quantization: Mapping[str, Any]) -> tuple[int, int]:
    kind, block = quantization.get("fmt"), quantization.get("weight_block_size")
    if kind not in _FORMATS:
        raise InputError("config.json: quantization_config.fmt is not supported", expected="e4m3", found=kind)
    if not (isinstance(block, list) and len(block) == 2 and all(type(side) is int and side > 0 for side in block)):
        raise InputError(
            "config.json: quantization_config.weight_block_size is needed for FP8 weights (F8_E4M3)",
            expected="two numbers, as [128, 128], beside quant_method fp8",
            found=f"{block} beside quant_method {quantization.get('quant_method')}",
        )
    return block[0], block[1]


def _check(weight: StoredTensor, scale: StoredTensor, block: tuple[int, int]) -> None:
    def refuse(what: str, expected: object, found: object) -> InputError:
        return InputError(what, file=weight.file.name, tensor=weight.name, expected=expected, found=found)

    if len(weight.shape) != 2:
        raise refuse("is FP8 and not a matrix", "2 dimensions", list(weight.shape))
    expected = [-(-size // side) for size, side in zip(weight.shape, block, strict=True)]
    if list(scale.shape) != expected:
        raise refuse(f"its scales {scale.name} have the wrong shape", expected, list(scale.shape))
    if scale.dtype not in _SCALE_DTYPES:
        raise refuse(f"its scales {scale.name} have an unknown type", " or ".join(_SCALE_DTYPES), scale.dtype)
