"""A harder simulator than numba's: memory is full of nonsense before it is written, and threads that race fail."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import numpy as np


def one_core() -> None:
    """Keep this process on one core: the simulator's threads take turns, and on two they do it ten times slower."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def poison() -> None:
    """Make device memory start as NaN or nonsense; in the simulator, shared and local memory too, and find races."""
    from numba import config, cuda

    cuda.device_array = lambda shape, dtype: cuda.to_device(nonsense(shape, dtype))
    if config.ENABLE_CUDASIM:
        from numba.cuda.simulator import kernel, kernelapi

        one_core()
        sys.setswitchinterval(5e-4)  # a thread that waits for the others spins meanwhile
        kernelapi.FakeCUDALocal.array = lambda _self, shape, dtype: nonsense(shape, numpy_dtype(dtype))
        kernelapi.FakeCUDAShared.array = shared_array
        kernelapi.FakeCUDAAtomic.add = add
        kernel.BlockThread.barriers = 0
        kernel.BlockThread.syncthreads = counted(kernel.BlockThread.syncthreads)


def nonsense(shape: Any, dtype: Any) -> np.ndarray:
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 99, dtype)


def numpy_dtype(kind: Any) -> np.dtype:
    from numba.np.numpy_support import as_dtype

    return as_dtype(kind)


def counted(wait: Any) -> Any:
    """A barrier that counts how often a thread came to it."""

    def syncthreads(self: Any) -> None:
        wait(self)
        self.barriers += 1

    return syncthreads


LOCK = threading.Lock()


def shared_array(self: Any, shape: Any, dtype: Any) -> Shared:
    """One array for every line of a kernel; numba's own looks and allocates without a lock, so that two may be made."""
    caller = sys._getframe(1)
    place = caller.f_code, caller.f_lineno
    with LOCK:
        if place not in self._allocations:
            self._allocations[place] = Shared(nonsense(shape, numpy_dtype(dtype)))
        return self._allocations[place]


class Shared:
    """Shared memory that knows which threads read and wrote each place since the last barrier."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.touched: dict[Any, tuple[Any, set[Any], set[Any]]] = {}

    def __getitem__(self, index: Any) -> Any:
        self.touch(index, writing=False)
        return self.array[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.touch(index, writing=True)
        self.array[index] = value

    def touch(self, index: Any, *, writing: bool) -> None:
        thread: Any = threading.current_thread()
        now = *thread.blockIdx, thread.barriers
        with LOCK:
            at = self.touched.get(index)
            if at is None or at[0] != now:
                at = self.touched[index] = now, set(), set()
            at[1 + writing].add(thread)
            others = (at[1] | at[2] if writing else at[2]) - {thread}
        if others:
            raise RuntimeError(f"threads race for {index} of {self.array.shape} behind barrier {thread.barriers}")


def add(_self: Any, array: Any, index: Any, value: Any) -> Any:
    """An atomic addition, which races with nobody."""
    with LOCK:
        before = array.array[index]
        array.array[index] += value
    return before
