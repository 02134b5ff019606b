"""Rows in, rows out, on any device."""

from gguf_mla.codec.arrays import empty
from gguf_mla.codec.rows import decode, dequantize, encode, quantize

__all__ = ["decode", "dequantize", "empty", "encode", "quantize"]
