"""The GPU itself: whether there is one, and what its failures mean to the user."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda
from numba.cuda.cudadrv.driver import CudaAPIError

from gguf_mla.errors import MachineError
from gguf_mla.lanes import cuda_driver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from verify.attention import Form, Inputs


def require(gpu: int = 0) -> None:
    """Raise MachineError, with the reason, unless that GPU can be used, or numba's simulator in its place."""
    cuda_driver.usable(gpu)


def on_gpu(gpu: int, form: Form) -> Form:
    """Return a form that runs on that GPU, whichever is the thread's current one."""

    def run(x: Inputs) -> Any:
        with cuda.gpus[gpu]:
            return form(x)

    return run


def sent(array: Any) -> Any:
    """Return a copy of a host array on the device, C-contiguous."""
    return cuda.to_device(np.ascontiguousarray(array))


@contextmanager
def explained() -> Iterator[None]:
    """Turn a failure of the GPU, its memory first of all, into a MachineError."""
    try:
        yield
    except CudaAPIError as error:
        remedy = "Use a GPU with more free memory, a shorter --context, or --device cpu"
        raise MachineError("the GPU failed", found=error, remedy=remedy) from error
