"""Where `--device` lets a pass compute, and how it attends there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from gguf_mla.codec.device import ON_THE_CPU, open_device
from gguf_mla.errors import MachineError
from gguf_mla.forward import cuda
from gguf_mla.forward.attention import FORMS
from gguf_mla.forward.place import Place, settle

if TYPE_CHECKING:
    from gguf_mla.forward.attention import Form


def place_on(name: str, threads: int) -> Place:
    """Return where a pass computes on a device, with so many threads of the CPU; torch is bound to them from now on.

    MachineError if there is no such device, or if torch cannot use it.
    """
    settle(threads)
    if open_device(name).name == "cpu":
        return Place(threads=threads)
    gpu = gpu_of(name)
    decoder: Any = open_device(f"cuda:{gpu}")
    return Place(_of_torch(gpu), threads, decoder)


def _of_torch(gpu: int) -> torch.device:
    """Return a GPU as torch's device; numba's simulator of one is the CPU."""
    if cuda.simulated():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        remedy = f"Install a build of torch for CUDA (https://pytorch.org), or {ON_THE_CPU}"
        raise MachineError(f"torch {torch.__version__} cannot use this machine's GPU", remedy=remedy)
    return torch.device("cuda", gpu)


def form_on(name: str, form: str) -> Form:
    """Return a form of attention as a device computes it: a GPU by kernels of its own where it has them, or by torch.

    MachineError if there is no such device.
    """
    if open_device(name).name == "cpu":
        return FORMS[form]
    return cuda.forms(gpu_of(name)).get(form, FORMS[form])


def gpu_of(name: str) -> int:
    """Return the number of the GPU that computes on a device "cuda" or "cuda:N": a pass needs one."""
    return int(name.partition(":")[2] or 0)
