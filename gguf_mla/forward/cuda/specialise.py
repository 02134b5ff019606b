"""Kernels with the sizes of a model compiled in: names of their module that are `unbound` get a value in each variant.

It is the trick of `lanes.binding.variant`, a code object with other globals, for kernels whose helpers use `cuda`: they
have to share one scope, which `variant` does not give.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

from numba import config, cuda

if TYPE_CHECKING:
    from collections.abc import Mapping

Function = Any
"""A plain function; typing's Callable has no __code__."""


def lesser(a: Any, b: Any) -> Any:
    """Return the lesser of two numbers."""
    return a if a < b else b  # noqa: FURB136 - numba 0.68 compiles no min for a GPU


def greater(a: Any, b: Any) -> Any:
    """Return the greater of two numbers, the first where the second is NaN."""
    return b if b > a else a  # noqa: FURB136 - likewise


def specialise(
    kernel: Function, helpers: tuple[Function, ...] = (), names: Mapping[str, Any] | None = None
) -> Function:
    """Return `kernel` with other values for some of its module's names, also in the device functions it calls.

    All of them share one scope: numba's simulator puts its own `cuda` into the kernel's and leaves it there while
    the threads run, which it cannot do for scopes that threads enter and leave at different times.
    """
    scope = {**kernel.__globals__, **(names or {})}
    for helper in helpers:
        scope[helper.__name__] = cuda.jit(device=True)(_copy(helper, scope))
    return _copy(kernel, scope)


def _copy(function: Function, scope: dict[str, Any]) -> FunctionType:
    return FunctionType(function.__code__, scope, function.__name__)


def compiled(function: Function, registers: int | None = None) -> Any:
    """Return a kernel that is compiled when it is first launched, to use at most so many registers per thread."""
    config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # nobody has to hear that a short text leaves a GPU idle
    # the simulator does not have this option
    options = {} if registers is None or config.ENABLE_CUDASIM else {"max_registers": registers}
    return cuda.jit(function, **options)
