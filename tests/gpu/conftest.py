"""Tests of a CUDA device. `make gpu` runs them on one; the test suite runs them in numba's simulator, on few blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_mla.codec.device import open_device
from tests.support.simulator import one_core

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf_mla.codec.on_cuda import Cuda


class OutOfMemoryError(RuntimeError):
    """What numba's driver raises then, for the simulator, which has memory without end."""

    code = 2


@pytest.fixture(scope="session")
def device() -> Cuda:
    """The GPUs; MachineError without one: a test that runs nowhere has shown nothing."""
    found: Any = open_device("cuda")
    if "simulator" in found.title:
        one_core()
    return found


@pytest.fixture(scope="session")
def simulated(device: Cuda) -> bool:
    from gguf_mla.codec.cuda_kernels import SIMULATED

    assert ("simulator" in device.title) == SIMULATED
    return SIMULATED


@pytest.fixture
def small_memory(simulated: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """GPU 0 has no more than 24 MiB left; the simulator, for an array, 600 bytes."""
    from numba import cuda

    if simulated:
        allocate = cuda.device_array

        def limited(count: int, dtype: Any) -> Any:
            if count * np.dtype(dtype).itemsize > 600:
                raise OutOfMemoryError
            return allocate(count, dtype)

        monkeypatch.setattr(cuda, "device_array", limited)
        monkeypatch.setattr("gguf_mla.codec.cuda_driver._failures", lambda: (OutOfMemoryError,))
        yield
        return
    with cuda.gpus[0]:
        taken = [cuda.device_array(cuda.current_context().get_memory_info().free - (24 << 20), np.uint8)]
    yield
    taken.clear()
