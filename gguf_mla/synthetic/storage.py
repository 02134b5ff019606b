"""The tensors that a quantized matrix is stored as in a checkpoint: their names, dtypes and shapes."""

from __future__ import annotations

FP8_BLOCK = 128
INT4_GROUP = 32

Part = tuple[str, str, tuple[int, ...]]


def fp8(name: str, shape: tuple[int, ...], scales: str = "F32") -> tuple[Part, Part]:
    """Return a matrix's e4m3 codes and a scale per block of 128 x 128, of this dtype."""
    blocks = tuple(-(-size // FP8_BLOCK) for size in shape)
    return (name, "F8_E4M3", shape), (f"{name}_scale_inv", scales, blocks)


def int4(name: str, shape: tuple[int, ...]) -> tuple[Part, Part, Part]:
    """Return the words of eight values each, a scale for 32 values of a row, and the shape."""
    rows, cols = shape
    packed = f"{name}_packed", "I32", (rows, -(-cols // 8))
    return packed, (f"{name}_scale", "BF16", (rows, -(-cols // INT4_GROUP))), (f"{name}_shape", "I32", (2,))
