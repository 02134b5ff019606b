"""Attention as a device computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.codec.device import open_device
from gguf_mla.errors import InputError
from gguf_mla.forward import cuda
from gguf_mla.forward.attention import FORMS

if TYPE_CHECKING:
    from gguf_mla.forward.attention import Form


def form_on(name: str, form: str) -> Form:
    """Return a form of attention as a device computes it.

    InputError for a form that only the CPU has; MachineError if there is no such device.
    """
    device = open_device(name)
    if device.name == "cpu":
        return FORMS[form]
    there = cuda.forms(gpu_of(name))
    if form not in there:
        raise InputError(f"--form {form} is the CPU's alone", expected=" or ".join(there), found=form)
    return there[form]


def gpu_of(name: str) -> int:
    """Return the number of the GPU that attends on a device "cuda" or "cuda:N": one sequence at a time needs one."""
    return int(name.partition(":")[2] or 0)
