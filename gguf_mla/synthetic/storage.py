"""The tensors that a quantized matrix is stored as in a checkpoint: their names, dtypes and shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gguf_mla.sources.safetensors import ITEM_BYTES

FP8_BLOCK = 128
INT4_GROUP = 32
MXFP4_GROUP = 32

Part = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True)
class StoredForm:
    """A tensor of a shard: what it holds of the weight `base`, whose shape is `whole`.

    `form` is "plain", "fp8", "int4", "mxfp4" or the scales that belong to one, or "table", experts of tokens, of which
    there are `experts`; `content` is there unless it is random numbers.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    base: str
    whole: tuple[int, ...]
    form: str = "plain"
    content: bytes | None = None
    experts: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def fp8(name: str, shape: tuple[int, ...], scales: str = "F32") -> tuple[Part, Part]:
    """Return a matrix's e4m3 codes and a scale per block of 128 x 128, of this dtype."""
    blocks = tuple(-(-size // FP8_BLOCK) for size in shape)
    return (name, "F8_E4M3", shape), (f"{name}_scale_inv", scales, blocks)


def int4(name: str, shape: tuple[int, ...]) -> tuple[Part, Part, Part]:
    """Return the words of eight values each, a scale for 32 values of a row, and the shape."""
    rows, cols = shape
    packed = f"{name}_packed", "I32", (rows, -(-cols // 8))
    return packed, (f"{name}_scale", "BF16", (rows, -(-cols // INT4_GROUP))), (f"{name}_shape", "I32", (2,))


def mxfp4(name: str, shape: tuple[int, ...]) -> tuple[Part, Part]:
    """Return the bytes of two values each, and an exponent for 32 values of a row."""
    rows, cols = shape
    return (name, "I8", (rows, cols // 2)), (f"{name}_scale", "F8_E8M0", (rows, cols // MXFP4_GROUP))
