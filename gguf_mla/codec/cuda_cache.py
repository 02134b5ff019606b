"""CUDA kernels on disk, with the CPU's, by toolkit and compute capability: compiling one takes seconds.

Apart from `cuda_kernels`, because numba's simulator has nothing to keep and lacks what this needs.
"""

from __future__ import annotations

from numba.cuda.dispatcher import CUDACache, CUDACacheImpl

from gguf_mla.codec.kernel_cache import LOCATORS


class _CudaCacheImpl(CUDACacheImpl):  # type: ignore[misc]
    _locator_classes = LOCATORS


class CudaKernelCache(CUDACache):  # type: ignore[misc]
    """A cache for `kernel_cache.keep_on_disk`."""

    _impl_class = _CudaCacheImpl
