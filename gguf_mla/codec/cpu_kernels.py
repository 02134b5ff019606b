"""A tensor type's CPU kernels: its texts bound to SIMD lanes, compiled without the GIL, kept on disk."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numba

from gguf_mla.codec import feed
from gguf_mla.codec.kernel_cache import keep_on_disk
from gguf_mla.lanes import cpu
from gguf_mla.lanes.binding import Binder

if TYPE_CHECKING:
    from gguf_mla.ggtypes.tensor_type import TensorType

# error_model: a division by zero gives infinity, as in C; numba would raise.
_compile = numba.njit(nogil=True, error_model="numpy", boundscheck=False)
_binder = Binder(cpu, _compile)


def _kernel(kind: TensorType, feeder: Any, text: str) -> Any:
    names = {
        "BLOCK": kind.block,
        "BYTES": kind.bytes,
        "SCRATCH": kind.scratch,
        "ROW_SPREAD": kind.row_spread,
        text: _binder.helper(getattr(kind.module, text)),
    }
    function = _binder.rebind(feeder, names, f"{kind.name}_{text}")
    return keep_on_disk(_compile(function))


@functools.cache
def encoder(kind: TensorType) -> Any:
    """`feed.encode_blocks` for one type."""
    return _kernel(kind, feed.encode_blocks, "encode")


@functools.cache
def weighted_encoder(kind: TensorType) -> Any:
    """`feed.encode_blocks_weighted` for one type."""
    return _kernel(kind, feed.encode_blocks_weighted, "encode_weighted")


@functools.cache
def decoder(kind: TensorType) -> Any:
    """`feed.decode_blocks` or, if the type decodes block by block, `feed.decode_each_block` for one type."""
    if hasattr(kind.module, "decode_block"):
        return _kernel(kind, feed.decode_each_block, "decode_block")
    return _kernel(kind, feed.decode_blocks, "decode")


@functools.cache
def value_encoder(kind: TensorType) -> Any:
    """`feed.encode_values` for one type that has one value per block; it also decodes, as encoding to F32."""
    return _kernel(kind, feed.encode_values, "encode_value")
