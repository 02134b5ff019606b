"""Whether kernels can be compiled for a GPU here."""

from __future__ import annotations


def nvvm() -> bool:
    """Whether there is NVIDIA's compiler, of a CUDA toolkit."""
    from numba.cuda.cudadrv.nvvm import NVVM, NvvmSupportError

    try:
        return bool(NVVM().get_version())
    except NvvmSupportError:
        return False
