"""Whether there is a GPU that can be used, and what its driver has to say, in sentences."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda
from numba.cuda.cudadrv import driver
from numba.cuda.cudadrv.error import CudaSupportError
from numba.cuda.cudadrv.runtime import runtime

from gguf_mla.codec.cuda_kernels import SIMULATED
from gguf_mla.codec.device import ON_THE_CPU
from gguf_mla.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY

# What the driver's numbers (CUresult) mean. numba does not know the names of all, but ends with the number.
_NUMBER = re.compile(r"\((\d+)\)\W*$")
_REASONS = {
    35: "the driver is older than its own library",  # CUDA_ERROR_INSUFFICIENT_DRIVER
    100: "the driver finds no GPU",  # CUDA_ERROR_NO_DEVICE
    803: "the driver and its library have different versions, as after an update",  # …_SYSTEM_DRIVER_MISMATCH
    804: "the driver's library does not support this GPU",  # …_COMPAT_NOT_SUPPORTED_ON_DEVICE
}
# What numba says in words, because it does not come to ask a driver.
_SENTENCES = {
    "driver library cannot be found": "no NVIDIA driver is installed",
    "NUMBA_DISABLE_CUDA": "NUMBA_DISABLE_CUDA is set",
}


class OutOfMemoryError(Exception):
    """A GPU's memory does not suffice."""


def usable(number: int | None) -> Sequence[int]:
    """Return the numbers of the GPUs asked for: all, or one. MachineError, with the reason, if they cannot be used."""
    if not SIMULATED:
        _check_driver()
        _check_toolkit()
    count = len(cuda.gpus)
    if number is not None and number >= count:
        known = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise MachineError(f"there is no GPU {number}", expected=known, found=f"cuda:{number}")
    gpus = range(count) if number is None else [number]
    if not SIMULATED:
        for gpu in gpus:
            _check_capability(gpu)
        _begin(gpus[0])
    return gpus


def _begin(gpu: int) -> None:
    """Make a GPU this thread's: the main thread's, mostly, where numba gives all memory back in the end."""
    try:
        with explained(title(gpu)):
            cuda.current_context(gpu)
    except OutOfMemoryError:
        remedy = f"End what else runs there, or {ON_THE_CPU}"
        raise MachineError(f"{title(gpu)} has no memory left", remedy=remedy) from None


def borrowed(array: Any) -> Any:
    """Return an array that another library has on a GPU as one of numba's: the same memory.

    It has to be C-contiguous. In the simulator it is one on the CPU.
    """
    if not SIMULATED:
        return cuda.as_cuda_array(array)
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray  # noqa: PLC0415  # only there

    return FakeCUDAArray(np.asarray(array))


def title(gpu: int) -> str:
    """Return what a GPU is called."""
    name = getattr(cuda.gpus[gpu], "name", "numba's CUDA simulator")
    return name.decode() if isinstance(name, bytes) else name


def _unusable(reason: str, remedy: str = "") -> MachineError:
    alternative = f"{remedy}, or {ON_THE_CPU}" if remedy else f"{ON_THE_CPU[0].upper()}{ON_THE_CPU[1:]}"
    return MachineError(f"no CUDA device can be used here: {reason}", remedy=alternative)


def _check_driver() -> None:
    try:
        available = driver.driver.is_available
    except CudaSupportError as error:
        raise _unusable(_reason(str(error))) from None
    if not available:
        raise _unusable(_reason(str(driver.driver.initialization_error)))
    if len(cuda.gpus) == 0:
        raise _unusable("the driver finds no GPU")


def _reason(said: str) -> str:
    number = _NUMBER.search(said)
    if number and int(number[1]) in _REASONS:
        return _REASONS[int(number[1])]
    known = (meaning for part, meaning in _SENTENCES.items() if part in said)
    return next(known, " ".join(said.split()).rstrip(".:"))


def _check_toolkit() -> None:
    """Kernels are compiled by the toolkit's NVVM to PTX, which only a driver of its version or newer can read."""
    needed = _toolkit()
    if needed is None:
        raise _unusable(
            "the CUDA toolkit, whose compiler is needed, is not found",
            "Install a CUDA toolkit (libnvvm, libdevice, libcudart) and name its place in CUDA_HOME",
        )
    found = driver.driver.get_version()
    if found < needed:
        raise MachineError(
            "the NVIDIA driver is too old for the CUDA toolkit",
            expected=f"a driver for CUDA {_dotted(needed)} or newer",
            found=f"one for CUDA {_dotted(found)}",
            remedy=f"Update the driver, name an older toolkit in CUDA_HOME, or {ON_THE_CPU}",
        )


def _toolkit() -> tuple[int, int] | None:
    """Return the version of the CUDA toolkit that numba finds; None if there is none to compile with."""
    from numba.cuda.cudadrv.libs import get_libdevice  # noqa: PLC0415  # the simulator has none
    from numba.cuda.cudadrv.nvvm import NVVM  # noqa: PLC0415  # nor this

    try:
        NVVM()
        version: tuple[int, int] = runtime.get_version()
    except (ImportError, OSError):  # numba's CudaSupportError and NvvmSupportError are ImportErrors
        return None
    return version if get_libdevice() else None


def _check_capability(gpu: int) -> None:
    supported, found = _supported(), cuda.gpus[gpu].compute_capability
    if not supported or found < min(supported):
        raise MachineError(
            f"{title(gpu)} is too old for the CUDA toolkit",
            expected=f"compute capability {_dotted(min(supported, default=(3, 5)))} or higher",
            found=_dotted(found),
            remedy=f"Name an older toolkit in CUDA_HOME, or {ON_THE_CPU}",
        )


def _supported() -> Sequence[tuple[int, int]]:
    """Return the compute capabilities that the toolkit compiles for."""
    from numba.cuda.cudadrv.nvvm import NVVM  # noqa: PLC0415  # the simulator has none

    found: Sequence[tuple[int, int]] = NVVM().supported_ccs
    return found


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


@contextlib.contextmanager
def explained(gpu: str) -> Iterator[None]:
    """Turn what numba and the driver raise inside into OutOfMemoryError or a MachineError."""
    try:
        yield
    except _failures() as error:
        if getattr(error, "code", None) == OUT_OF_MEMORY or "CUDA_ERROR_OUT_OF_MEMORY" in str(error):
            raise OutOfMemoryError from None
        said = " ".join(str(error).split()).rstrip(".")
        raise MachineError(f"{gpu} failed: {said}", remedy=f"Try again, or {ON_THE_CPU}") from None


def _failures() -> tuple[type[Exception], ...]:
    found: list[Any] = [CudaSupportError, driver.CudaAPIError, driver.LinkerError]
    if not SIMULATED:
        from numba.cuda.cudadrv import error  # noqa: PLC0415  # the simulator's has less

        found += [error.CudaDriverError, error.NvvmError, error.NvvmSupportError]
    return tuple(found)
