"""CUDA kernels: a thread encodes or decodes one block, with the same texts as the CPU.

In numba's simulator (NUMBA_ENABLE_CUDASIM=1) the lanes are `lanes.single`; on a GPU they are `lanes.thread`, which
rounds every operation on its own, so that no multiplication is fused with an addition.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import config, cuda, float32

from gguf_mla.lanes.binding import Binder

if TYPE_CHECKING:
    from gguf_mla.ggtypes.tensor_type import TensorType

THREADS = 64
BLOCK = SCRATCH = 1
ROW_SPREAD = False

text: Any = None  # the type's own, in each kernel


def encode_kernel(source: Any, tables: Any, out: Any) -> None:
    """One thread per block: source float32 [blocks, values], out uint8 [blocks, bytes]."""
    block = cuda.grid(1)
    if block < out.shape[0]:
        scratch = cuda.local.array(SCRATCH, float32)
        text(source[block], scratch, tables, out[block])


def encode_weighted_kernel(source: Any, importance: Any, spread: Any, tables: Any, out: Any) -> None:
    """Like `encode_kernel`; importance float32 [blocks of a row, values], spread float32 [rows]."""
    block = cuda.grid(1)
    if block < out.shape[0]:
        scratch = cuda.local.array(SCRATCH, float32)
        if ROW_SPREAD:
            scratch[0] = spread[block // importance.shape[0]]
        text(source[block], importance[block % importance.shape[0]], scratch, tables, out[block])


def decode_kernel(data: Any, tables: Any, out: Any) -> None:
    """One thread per block: data uint8 [blocks, bytes], out float32 [blocks, values]."""
    block = cuda.grid(1)
    if block < data.shape[0]:
        text(data[block], tables, out[block])


def available() -> bool:
    """Tell whether there is a GPU, or numba's simulator in its place."""
    return bool(cuda.is_available())


@functools.cache
def binder() -> Binder:
    """Return the binder for this machine's lanes."""
    if config.ENABLE_CUDASIM:
        return Binder(import_module("gguf_mla.lanes.single"), cuda.jit(device=True))
    return Binder(import_module("gguf_mla.lanes.thread"), cuda.jit(device=True, inline="always"))


@functools.cache
def function(kind: TensorType, name: str) -> Any:
    """Return the Python function of one type's kernel: `name` is encode, encode_weighted or decode_block."""
    kernel = {"encode": encode_kernel, "encode_weighted": encode_weighted_kernel, "decode_block": decode_kernel}[name]
    names = {
        "SCRATCH": kind.scratch,
        "ROW_SPREAD": kind.row_spread,
        "text": binder().helper(getattr(kind.module, name)),
    }
    return binder().rebind(kernel, names, f"{kind.name}_{name}")


@functools.cache
def _kernel(kind: TensorType, name: str) -> Any:
    return cuda.jit(function(kind, name))


@functools.cache
def _tables(kind: TensorType) -> Any:
    return tuple(cuda.to_device(table) for table in kind.tables())


def _launch(kind: TensorType, name: str, blocks: int, *arguments: Any) -> None:
    _kernel(kind, name)[-(-blocks // THREADS), THREADS](*arguments)


def encode(kind: TensorType, x: Any, importance: Any, out: Any) -> None:
    """Encode float32 rows [rows, cols] into out uint8 [rows, row_bytes], both on the host."""
    source, blocks = x.reshape(-1, kind.block), out.reshape(-1, kind.bytes)
    target = cuda.device_array(blocks.shape, np.uint8)
    if importance is None or not kind.uses_importance:
        _launch(kind, "encode", len(blocks), cuda.to_device(source), _tables(kind), target)
    else:
        # cumsum adds in order, as the texts do; sum would add in pairs
        spread = np.cumsum(x * x, axis=1)[:, -1] / np.float32(x.shape[1])
        weights = cuda.to_device(importance.reshape(-1, kind.block))
        arguments = cuda.to_device(source), weights, cuda.to_device(spread), _tables(kind), target
        _launch(kind, "encode_weighted", len(blocks), *arguments)
    target.copy_to_host(blocks)


def decode(kind: TensorType, data: Any, out: Any) -> None:
    """Decode rows uint8 [rows, row_bytes] into out float32 [rows, cols], both on the host."""
    blocks = np.ascontiguousarray(data).reshape(-1, kind.bytes)
    values = out.reshape(-1, kind.block)
    target = cuda.device_array(values.shape, np.float32)
    _launch(kind, "decode_block", len(blocks), cuda.to_device(blocks), _tables(kind), target)
    target.copy_to_host(values)
