"""Weights of 8 bits with one scale for a tensor, a row, or a part of a row, as vLLM's tools store them.

`X.weight` float8_e4m3fn or int8 [M, N], and `X.weight_scale` in F32, BF16 or F16:

    [], [1], [1, 1]   one for all                              [M], [M, 1]   one for each row (output channel)
    [M, N/g]          one for each g values of a row           [⌈M/b⌉, ⌈N/c⌉] with block_structure [b, c]: for a block

value = weight · scale, one float32 rounding. Whether activations are rounded too (`input_scale`) is not the weights'
concern. Source: compressed-tensors' descriptions of "float-quantized" and "int-quantized"; ModelOpt's FP8, AutoFP8,
FBGEMM and w8a8_int8 have the same tensors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError
from gguf_mla.sources.formats import Found
from gguf_mla.sources.formats.shared.coded import CODES, CodedTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gguf_mla.sources.safetensors import StoredTensor

METHODS = ("compressed-tensors", "fbgemm_fp8", "fp8", "modelopt", "w8a8_fp8", "w8a8_int8")
SCALE_SUFFIX, ZERO_SUFFIX = "_scale", "_zero_point"

_SCALE_DTYPES = ("F32", "BF16", "F16")
_WORDS = {"F8_E4M3": "FP8", "I8": "INT8"}


def found(stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any]) -> Found:
    """Join every weight of 8 bits with its scales; InputError for one that lacks them, or whose do not fit."""
    blocks = list(_blocks(quantization))
    coded = [name for name, tensor in stored.items() if _is_coded(name, tensor, stored)]
    tensors = {name: _joined(stored[name], stored, blocks) for name in coded}
    return Found(tensors, frozenset(name + suffix for name in coded for suffix in ("", SCALE_SUFFIX)))


def _is_coded(name: str, tensor: StoredTensor, stored: Mapping[str, StoredTensor]) -> bool:
    # A lone tensor of bytes may be anything; floats of 8 bits are weights, and need scales.
    if tensor.dtype == "F8_E4M3":
        return not name.endswith((SCALE_SUFFIX, "_scale_inv")) and name + "_scale_inv" not in stored
    if tensor.dtype not in CODES:
        return False
    scale = stored.get(name + SCALE_SUFFIX)
    return scale is not None and scale.dtype in _SCALE_DTYPES


def _blocks(quantization: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield the sizes of blocks that the configuration names, [rows, columns]."""
    groups = quantization.get("config_groups")
    entries = groups.values() if isinstance(groups, dict) else ()
    schemes = [entry.get("weights") for entry in entries if isinstance(entry, dict)]
    named = [scheme.get("block_structure") for scheme in schemes if isinstance(scheme, dict)]
    for block in (*named, quantization.get("weight_block_size")):
        if isinstance(block, list) and len(block) == 2 and all(type(side) is int and side > 0 for side in block):
            yield block[0], block[1]


def _joined(weight: StoredTensor, stored: Mapping[str, StoredTensor], blocks: list[tuple[int, int]]) -> CodedTensor:
    def refuse(what: str, expected: object, found: object, remedy: str | None = None) -> InputError:
        at = weight.file.name
        return InputError(what, file=at, tensor=weight.name, expected=expected, found=found, remedy=remedy)

    word, scale = _WORDS[weight.dtype], stored.get(weight.name + SCALE_SUFFIX)
    if scale is None:
        expected = f"a tensor {weight.name}_scale_inv or {weight.name}{SCALE_SUFFIX}"
        remedy = "They may lie in a shard that is not there, or were left behind when the model was saved again"
        raise refuse(f"is {word} and its scales are missing", expected, "none", remedy)
    if weight.name + ZERO_SUFFIX in stored:
        raise refuse("has zero points, which are not supported", "none", weight.name + ZERO_SUFFIX)
    if len(weight.shape) != 2:
        raise refuse(f"is {word} and not a matrix", "2 dimensions", list(weight.shape))
    if scale.dtype not in _SCALE_DTYPES:
        raise refuse(f"its scales {scale.name} have an unknown type", " or ".join(_SCALE_DTYPES), scale.dtype)
    block = _geometry(weight.shape, scale.shape, blocks)
    if block is None:
        expected = f"one, [{weight.shape[0]}, 1], or [{weight.shape[0]}, groups]"
        raise refuse(f"its scales {scale.name} have the wrong shape", expected, list(scale.shape))
    return CodedTensor(weight, scale, block, f"{word} {_kind(block, weight.shape)}")


def _geometry(shape: tuple[int, ...], scales: tuple[int, ...], blocks: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Return how many rows and columns share a scale; None where the shapes do not tell."""
    rows, cols = shape
    if math.prod(scales) == 1:
        return max(2, rows), max(1, cols)
    if scales in ((rows,), (rows, 1)):
        return 1, cols
    for high, wide in blocks:
        if scales == (-(-rows // high), -(-cols // wide)):
            return high, wide
    if len(scales) == 2 and scales[0] == rows and scales[1] and cols % scales[1] == 0:
        return 1, cols // scales[1]
    return None


def _kind(block: tuple[int, int], shape: tuple[int, ...]) -> str:
    if block[0] == 1:
        return "per row" if block[1] == shape[1] else f"group {block[1]}"
    return "per tensor" if block[0] >= shape[0] and block[1] >= shape[1] else f"{block[0]}x{block[1]}"
