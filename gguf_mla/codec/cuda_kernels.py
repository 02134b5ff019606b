"""CUDA kernels: a thread encodes or decodes one block, with the same texts as the CPU.

In numba's simulator (NUMBA_ENABLE_CUDASIM=1) the lanes are `lanes.single`; on a GPU they are `lanes.thread`, which
rounds every operation on its own, so that no multiplication is fused with an addition.
"""

from __future__ import annotations

import functools
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

from numba import config, cuda, float32

from gguf_mla import lanes
from gguf_mla.codec.kernel_cache import keep_on_disk
from gguf_mla.lanes.binding import Binder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gguf_mla.ggtypes.tensor_type import TensorType

THREADS = 64
BLOCK = SCRATCH = 1
ROW_SPREAD = False
EXPONENT = 0x7F800000
SIMULATED = bool(config.ENABLE_CUDASIM)
config.CUDA_LOW_OCCUPANCY_WARNINGS = False  # a short row is not worth a warning to the user

# Two threads that launch a kernel for the first time would both compile it, and the simulator runs one at a time.
LAUNCHING = threading.Lock()

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


def widen_kernel(data: Any, out: Any) -> None:
    """One thread per value: data uint8 [2 values] of F16 or BF16, out float32 [values]."""
    at = cuda.grid(1)
    if at < out.shape[0]:
        lanes.store(out, at, text(lanes.get16(data, 2 * at)))


def spread_kernel(values: Any, out: Any) -> None:
    """One thread per row: out float32 [rows] = mean of the squares of values [rows, cols], summed in order."""
    row = cuda.grid(1)
    if row < out.shape[0]:
        total = lanes.full(0.0)
        for column in range(values.shape[1]):
            value = lanes.load(values[row], column)
            total = total + value * value
        lanes.store(out, row, total / lanes.full(values.shape[1]))


def special_kernel(values: Any, found: Any) -> None:
    """One thread per value: found[0] = 1 if any of the values [n] is NaN or infinite."""
    at = cuda.grid(1)
    if at < values.shape[0] and lanes.any_lane(lanes.bits(lanes.load(values, at)) & EXPONENT == EXPONENT):
        found[0] = 1


OF_A_TYPE = {  # the text a type's file defines → the kernel that runs it
    "encode": encode_kernel,
    "encode_weighted": encode_weighted_kernel,
    "decode_block": decode_kernel,
    "decode_value": widen_kernel,
}
OF_NO_TYPE = {"spread": spread_kernel, "special": special_kernel}


@functools.cache
def binder() -> Binder:
    """Return the binder for this machine's lanes."""
    if SIMULATED:
        return Binder(import_module("gguf_mla.lanes.single"), cuda.jit(device=True))
    return Binder(import_module("gguf_mla.lanes.thread"), cuda.jit(device=True, inline="always"))


def kernels_of(kind: TensorType) -> list[str]:
    """Return which kernels a type has; a float type's values are only widened, the rest is the CPU's."""
    if kind.block == 1:
        return ["decode_value"] if kind.bytes == 2 else []
    return [name for name in ("encode", "encode_weighted", "decode_block") if hasattr(kind.module, name)]


@functools.cache
def function(name: str, kind: TensorType | None = None) -> Any:
    """Return the Python function of a kernel, named as OF_A_TYPE or OF_NO_TYPE has it."""
    if kind is None:
        return binder().rebind(OF_NO_TYPE[name], {}, name)
    names: Mapping[str, Any] = {
        "SCRATCH": kind.scratch,
        "ROW_SPREAD": kind.row_spread,
        "text": binder().helper(getattr(kind.module, name)),
    }
    return binder().rebind(OF_A_TYPE[name], names, f"{kind.name}_{name}")


@functools.cache
def _kernel(name: str, kind: TensorType | None) -> Any:
    kernel = cuda.jit(function(name, kind))
    if SIMULATED:
        return kernel
    from gguf_mla.codec.cuda_cache import CudaKernelCache  # noqa: PLC0415  # the simulator lacks what it needs

    return keep_on_disk(kernel, CudaKernelCache)


def launch(name: str, kind: TensorType | None, threads: int, stream: Any, *arguments: Any) -> None:
    """Queue a kernel of `threads` threads on a stream."""
    with LAUNCHING:
        _kernel(name, kind)[-(-threads // THREADS), THREADS, stream](*arguments)
