"""Rows in, rows out, on any device."""

from gguf_mla.codec.rows import decode, dequantize, empty, encode, quantize

__all__ = ["decode", "dequantize", "empty", "encode", "quantize"]
