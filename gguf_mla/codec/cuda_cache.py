"""CUDA kernels on disk, with the CPU's, by toolkit and compute capability: compiling one takes seconds.

Apart from `cuda_kernels`, because numba's simulator has nothing to keep and lacks what this needs.
"""

from __future__ import annotations

from typing import Any

from numba.core.target_extension import target_override
from numba.cuda.dispatcher import CUDACacheImpl

from gguf_mla.codec.kernel_cache import KernelCache


class _CudaKernels(CUDACacheImpl):  # type: ignore[misc]
    """How a kernel of a GPU becomes an object that can be pickled, and comes back."""

    def __init__(self) -> None:
        """Do without what numba would set up here: a place on disk."""


class CudaKernelCache(KernelCache):
    """A cache for `kernel_cache.keep_on_disk`."""

    results = _CudaKernels()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return a kernel that was kept; None if it is to be compiled."""
        with target_override("cuda"):  # whose context is the current one when it comes back
            return super().load_overload(sig, target_context)
