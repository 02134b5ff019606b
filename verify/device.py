"""What a proof does on another device: its trial, and the candidate's attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import trust
from gguf_mla.container.splits import open_gguf_parts
from gguf_mla.device import open_device
from gguf_mla.errors import InputError
from verify.attention import FORMS

if TYPE_CHECKING:
    from pathlib import Path

    from verify.attention import Form


def check_device(name: str, *paths: Path) -> str | None:
    """Try every type that GGUF files among `paths` hold, and say so; None for the CPU, by which others are judged.

    MachineError if there is no such device, or at the first byte that differs.
    """
    device = open_device(name)
    if device.name == "cpu":
        return None
    types = dict.fromkeys(type_name for path in paths for type_name in _types(path))
    return trust.report(device, trust.check(device, [use for held in types for use in trust.uses(held)]))


def _types(path: Path) -> list[str]:
    """Return the types of a file's tensors; none of a checkpoint, and of what cannot be read: the proof will say so."""
    try:
        return [] if path.is_dir() else [tensor.type for tensor in open_gguf_parts(path).tensors.values()]
    except InputError:
        return []


def form_on(name: str, form: str) -> Form:
    """Return a form of attention as a device computes it.

    InputError for a form that only the CPU has; MachineError if there is no such device.
    """
    device = open_device(name)
    if device.name == "cpu":
        return FORMS[form]
    from verify import cuda  # noqa: PLC0415 - numba, 0.3 s

    there = cuda.forms(gpu_of(name))
    if form not in there:
        raise InputError(f"--form {form} is the CPU's alone", expected=" or ".join(there), found=form)
    return there[form]


def gpu_of(name: str) -> int:
    """Return the number of the GPU that attends on a device "cuda" or "cuda:N": one sequence at a time needs one."""
    return int(name.partition(":")[2] or 0)
