"""A tensor type's CPU kernels: its formulas bound to SIMD lanes, compiled without the GIL, kept on disk."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numba  # noqa: F401  # the whole first: two threads that begin with parts of it meet half of it
import numpy as np

from gguf_mla.codec import feed
from gguf_mla.codec.arrays import empty
from gguf_mla.codec.compilation import HelperCompiler, KernelCompiler
from gguf_mla.codec.kernel_cache import KernelCache, compiler, keep_on_disk
from gguf_mla.lanes import cpu
from gguf_mla.lanes.binding import Binder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.codec.encoding import Encoding
    from gguf_mla.ggtypes.tensor_type import TensorType

# error_model: a division by zero gives infinity, as in C; numba would raise.
_OPTIONS = {"_nrt": False, "nogil": True, "error_model": "numpy", "boundscheck": False, "no_cfunc_wrapper": True}
_compile = compiler(**_OPTIONS, pipeline_class=KernelCompiler)
_binder = Binder(cpu, compiler(**_OPTIONS, no_cpython_wrapper=True, pipeline_class=HelperCompiler))


def _kernel(feeder: Any, tensor_type: TensorType, formula: str) -> Any:
    names = {
        "BLOCK": tensor_type.block,
        "BYTES": tensor_type.bytes,
        "SCRATCH": tensor_type.scratch,
        "ROW_SPREAD": tensor_type.row_spread,
        "formula": _binder.helper(getattr(tensor_type.module, formula)),
    }
    kernel = _compile(_binder.rebind(feeder, names, f"{tensor_type.name}_{formula}"))
    return keep_on_disk(kernel, functools.partial(KernelCache, purpose=tensor_type.name))


@functools.cache
def encoder(encoding: Encoding) -> Any:
    """`feed.encode_blocks` for one encoding or, if it is weighted, `feed.encode_blocks_weighted`."""
    feeder = feed.encode_blocks_weighted if encoding.weighted else feed.encode_blocks
    return _kernel(feeder, encoding.type, encoding.formula)


@functools.cache
def value_encoder(encoding: Encoding) -> Any:
    """`feed.encode_values` for a type that has one value per block; it also decodes, as encoding to F32."""
    return _kernel(feed.encode_values, encoding.type, encoding.formula)


@functools.cache
def decoder(tensor_type: TensorType) -> Any:
    """`feed.decode_blocks` or, if the type decodes block by block, `feed.decode_each_block` for one type."""
    if hasattr(tensor_type.module, "decode_block"):
        return _kernel(feed.decode_each_block, tensor_type, "decode_block")
    return _kernel(feed.decode_blocks, tensor_type, "decode")


def room(tensor_type: TensorType, *registers: int) -> tuple[NDArray[Any], ...]:
    """Return what `feed` works in: starts of blocks, blocks to fill up the last 16, arrays of so many registers."""
    spare = np.zeros((feed.WIDTH, tensor_type.bytes), np.uint8)
    values = (empty((count, feed.WIDTH), np.dtype(np.float32)) for count in registers)
    return (np.zeros(feed.WIDTH, np.int64), spare, *values)


def weighted_room(tensor_type: TensorType, rows: int) -> tuple[NDArray[Any], ...]:
    """Return what `feed.encode_blocks_weighted` needs besides: a block's weights, and a number for each row."""
    weights = empty((tensor_type.block, feed.WIDTH), np.dtype(np.float32))
    return weights, np.empty(rows + feed.WIDTH, np.float32)
