"""Where a pass computes: one of torch's devices, and how stored matrices get there.

Float32 throughout: no TF32, and only algorithms that give the same bits every time. What is stored is decoded where it
is used: on the CPU by `codec`'s kernels or numpy, into memory that torch wraps; on a GPU by `codec`'s kernels for it,
into memory that is torch's. Only what has no such kernel is decoded on the CPU and copied: FP8 and INT4 of a
checkpoint, and the key half of a joined kv_b, which is transposed.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from gguf_mla import ggtypes
from gguf_mla.codec.arrays import CACHE_LINE
from gguf_mla.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from gguf_mla.codec.on_cuda import Cuda
    from gguf_mla.forward.arrays import Floats, Ids, Numbers, Rows
    from gguf_mla.forward.tensors import Stack

T = TypeVar("T")
R = TypeVar("R")
CHUNK_VALUES = 1 << 22  # 16 MiB as float32: enough for a matrix product to be worth it
OUT_OF_MEMORY = "can't allocate memory"  # in what torch's allocator for the CPU says
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # has to be set before CUDA starts for products with the same bits every time


def settle(threads: int) -> None:
    """Let torch compute the same bits every time, in float32, on so many threads."""
    os.environ.setdefault(CUBLAS, ":4096:8")
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.set_deterministic_debug_mode("error")  # as use_deterministic_algorithms, which loads the compiler, too
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by its own setter


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Turn what torch says of memory into what others say: MemoryError on the CPU, a MachineError of a GPU."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        remedy = "Use a GPU with more free memory, a shorter --context, fewer --chunks, or --device cpu"
        raise MachineError("the GPU does not have enough memory", remedy=remedy) from None
    except RuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        raise MemoryError from None


@dataclass(frozen=True)
class Place:
    """Where tensors lie.

    device   torch's
    threads  how many compute side by side, where each decodes the matrices that it multiplies
    decoder  the GPU that decodes there; None where the CPU does
    """

    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    threads: int = 1
    decoder: Cuda | None = None

    def tensor(self, rows: Rows) -> Floats:
        """Return values of the host there; on the CPU they are the same memory where it is aligned for products."""
        if self.device.type != "cpu":
            return torch.as_tensor(np.require(rows, requirements="W"), device=self.device)
        aligned = rows.ctypes.data % CACHE_LINE == 0 and rows.flags.c_contiguous and rows.flags.writeable
        if aligned:
            return torch.from_numpy(rows)
        wrapped = _wrapped(rows)
        return torch.empty_like(wrapped).copy_(wrapped)

    def ids(self, ids: Ids) -> Numbers:
        """Return token ids there."""
        writable = ids if isinstance(ids, torch.Tensor) else np.require(ids, requirements="W")
        return torch.as_tensor(writable, dtype=torch.int64, device=self.device)

    def rows(self, stack: Stack, index: int, start: int, stop: int) -> Floats:
        """Return some rows of a matrix of a stack, float32 [stop - start, cols]."""
        if self.decoder is not None and stack.blocks is not None:
            return self._decoded_there(stack, index, start, stop)
        out = torch.empty(stop - start, stack.cols)
        stack.write(index, start, stop, out.numpy())
        return out.to(self.device)

    def cuts(self, stack: Stack) -> Iterator[slice]:
        """Yield the rows of a matrix in pieces of about CHUNK_VALUES values."""
        step = max(1, CHUNK_VALUES // stack.cols)
        return (slice(start, min(start + step, stack.rows)) for start in range(0, stack.rows, step))

    def chunks(self, stack: Stack, index: int = 0) -> Iterator[tuple[int, Floats]]:
        """Yield a matrix in these pieces: first row, rows."""
        return ((cut.start, self.rows(stack, index, cut.start, cut.stop)) for cut in self.cuts(stack))

    def side_by_side(self, compute: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield what is computed of every item, in order; on a CPU each by one thread, as many at a time as there are.

        For computations that are too small for all threads to share one.
        """
        if self.device.type != "cpu" or min(self.threads, torch.get_num_threads()) == 1:  # a worker has one, too
            yield from map(compute, items)
            return
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(workers(self.threads).submit(compute, item))
            if len(waiting) > self.threads:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()

    def all(self, stack: Stack) -> Floats:
        """Return a whole stack, float32 [count, rows, cols]."""
        return torch.stack([self.rows(stack, index, 0, stack.rows) for index in range(stack.count)])

    def _decoded_there(self, stack: Stack, index: int, start: int, stop: int) -> Floats:
        assert self.decoder is not None  # noqa: S101 - the caller has looked
        assert stack.blocks is not None  # noqa: S101 - likewise
        stored = stack.blocks(index, start, stop)
        if stored.type == "F32":
            return self.tensor(stored.data.view(np.float32))
        out = torch.empty(stop - start, stack.cols, device=self.device)
        self.decoder.decode_there(ggtypes.by_name(stored.type), stored.data, out)
        return out if stored.scale == 1 else out.mul_(stored.scale)


@cache
def workers(threads: int) -> ThreadPoolExecutor:
    """Return threads that compute side by side, with torch each alone; starting some takes as long as a product."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


def _wrapped(rows: Rows) -> torch.Tensor:
    """Return values as a tensor to copy from; torch warns of memory that it must not write to, so that is copied."""
    return torch.from_numpy(np.require(rows, requirements=["C", "W"]))


CPU = Place()


def as_array(x: torch.Tensor) -> Any:
    """Return a tensor as an array of numpy's; on the CPU the same memory."""
    return x.cpu().numpy()
