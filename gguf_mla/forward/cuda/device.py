"""The GPU itself: whether there is one, and what its failures mean to the user."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda

from gguf_mla.codec import cuda_driver
from gguf_mla.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf_mla.forward.attention import Form, Inputs


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
    """Turn a failure of the GPU into a MachineError, with what helps when its memory does not suffice."""
    try:
        with cuda_driver.explained("the GPU"):
            yield
    except cuda_driver.OutOfMemoryError:
        remedy = "Use a GPU with more free memory, a shorter --context, or --device cpu"
        raise MachineError("the GPU does not have enough memory", remedy=remedy) from None
