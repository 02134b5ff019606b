"""CUDA kernels: a thread encodes or decodes one block, with the same formulas as the CPU.

In numba's simulator (NUMBA_ENABLE_CUDASIM=1) the lanes are `lanes.single`; on a GPU they are `lanes.thread`, which
rounds every operation on its own, so that no multiplication is fused with an addition.
"""

from __future__ import annotations

import functools
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from numba import config, cuda, float32

from gguf_mla import lanes
from gguf_mla.codec.kernel_cache import keep_on_disk
from gguf_mla.lanes.binding import Binder, unbound

if TYPE_CHECKING:
    from gguf_mla.codec.encoding import Encoding
    from gguf_mla.ggtypes.tensor_type import TensorType

THREADS = 64
MAGNITUDE, CERTAIN = 0x7FFFFFFF, 0x44800000  # as in `feed`
SIMULATED = bool(config.ENABLE_CUDASIM)
config.CUDA_LOW_OCCUPANCY_WARNINGS = False  # a short row is not worth a warning to the user

# Two threads that launch a kernel for the first time would both compile it, and the simulator runs one at a time.
LAUNCHING = threading.Lock()

# The type's own, in each kernel: its numbers, and the function of its file that encodes or decodes.
SCRATCH, ROW_SPREAD, formula = map(unbound, ("SCRATCH", "ROW_SPREAD", "formula"))


def encode_kernel(source: Any, tables: Any, out: Any) -> None:
    """One thread per block: source float32 [blocks, values], out uint8 [blocks, bytes]."""
    block = cuda.grid(1)
    if block < out.shape[0]:
        scratch = cuda.local.array(SCRATCH, float32)
        formula(source[block], scratch, tables, out[block])


def encode_weighted_kernel(source: Any, importance: Any, spread: Any, tables: Any, out: Any) -> None:
    """Like `encode_kernel`; importance float32 [blocks of a row, values], spread float32 [rows]."""
    block = cuda.grid(1)
    if block < out.shape[0]:
        scratch = cuda.local.array(SCRATCH, float32)
        if ROW_SPREAD:
            scratch[0] = spread[block // importance.shape[0]]
        formula(source[block], importance[block % importance.shape[0]], scratch, tables, out[block])


def decode_kernel(data: Any, tables: Any, out: Any) -> None:
    """One thread per block: data uint8 [blocks, bytes], out float32 [blocks, values]."""
    block = cuda.grid(1)
    if block < data.shape[0]:
        formula(data[block], tables, out[block])


def widen_kernel(data: Any, out: Any) -> None:
    """One thread per value: data uint8 [2 values] of F16 or BF16, out float32 [values]."""
    at = cuda.grid(1)
    if at < out.shape[0]:
        lanes.store(out, at, formula(lanes.get16(data, 2 * at)))


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
    """One thread per value: found[0] = 1 if any of the values [n] is NaN, infinite, or above CERTAIN."""
    at = cuda.grid(1)
    if at < values.shape[0] and lanes.any_lane(lanes.bits(lanes.load(values, at)) & MAGNITUDE > CERTAIN):
        found[0] = 1


class Kernel(NamedTuple):
    """One of the functions above and what it is bound over: a type and the name of a formula in its file, if any."""

    body: Any
    type: TensorType | None = None
    formula: str = ""


SPREAD, SPECIAL = Kernel(spread_kernel), Kernel(special_kernel)


def encoder(encoding: Encoding) -> Kernel:
    """Return the kernel of one encoding of blocks."""
    return Kernel(encode_weighted_kernel if encoding.weighted else encode_kernel, encoding.type, encoding.formula)


def decoder(tensor_type: TensorType) -> Kernel:
    """Return the kernel that decodes a type: of floats, F16 or BF16."""
    if tensor_type.block == 1:
        return Kernel(widen_kernel, tensor_type, "decode_value")
    return Kernel(decode_kernel, tensor_type, "decode_block")


@functools.cache
def binder() -> Binder:
    """Return the binder for this machine's lanes."""
    if SIMULATED:
        return Binder(import_module("gguf_mla.lanes.single"), cuda.jit(device=True))
    return Binder(import_module("gguf_mla.lanes.thread"), cuda.jit(device=True, inline="always"))


@functools.cache
def function(kernel: Kernel) -> Any:
    """Return the Python function of a kernel, bound to this machine's lanes and its type's formula."""
    if kernel.type is None:
        return binder().rebind(kernel.body, {}, kernel.body.__name__.removesuffix("_kernel"))
    names = {
        "SCRATCH": kernel.type.scratch,
        "ROW_SPREAD": kernel.type.row_spread,
        "formula": binder().helper(getattr(kernel.type.module, kernel.formula)),
    }
    return binder().rebind(kernel.body, names, f"{kernel.type.name}_{kernel.formula}")


@functools.cache
def _compiled(kernel: Kernel) -> Any:
    compiled = cuda.jit(function(kernel))
    if SIMULATED:
        return compiled
    from gguf_mla.codec.cuda_cache import CudaKernelCache  # noqa: PLC0415  # the simulator lacks what it needs

    return keep_on_disk(compiled, CudaKernelCache)


def launch(kernel: Kernel, threads: int, stream: Any, *arguments: Any) -> None:
    """Queue a kernel of `threads` threads on a stream."""
    with LAUNCHING:
        _compiled(kernel)[-(-threads // THREADS), THREADS, stream](*arguments)
