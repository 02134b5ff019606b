"""The GPU itself: whether there is one, what its failures mean to the user, and what torch and numba have there."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
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
    """Return an array or tensor on the device, C-contiguous; one that is there and so already is not copied."""
    if hasattr(array, "__cuda_array_interface__"):
        return cuda_driver.borrowed(array.contiguous())
    return cuda.to_device(np.ascontiguousarray(array))


def received(array: Any, like: torch.Tensor) -> torch.Tensor:
    """Return an array of the device's as a tensor where `like` is; on that GPU it is the same memory."""
    if like.is_cuda:
        return torch.as_tensor(array, device=like.device)
    return torch.from_numpy(array.copy_to_host())


@contextmanager
def explained() -> Iterator[None]:
    """Turn a failure of the GPU into a MachineError, with what helps when its memory does not suffice."""
    try:
        with cuda_driver.explained("the GPU"):
            yield
    except cuda_driver.OutOfMemoryError:
        remedy = "Use a GPU with more free memory, a shorter --context, or --device cpu"
        raise MachineError("the GPU does not have enough memory", remedy=remedy) from None
