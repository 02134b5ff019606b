"""Kernels with the sizes of a model compiled in: module constants are placeholders that each variant replaces."""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

from numba import config, cuda

if TYPE_CHECKING:
    from collections.abc import Mapping

Text = Any
"""A plain function; typing's Callable has no __code__."""


def lesser(a: Any, b: Any) -> Any:
    """Return the lesser of two numbers."""
    return a if a < b else b  # noqa: FURB136 - numba 0.68 compiles no min for a GPU


def greater(a: Any, b: Any) -> Any:
    """Return the greater of two numbers, the first where the second is NaN."""
    return b if b > a else a  # noqa: FURB136 - likewise


def specialise(kernel: Text, helpers: tuple[Text, ...] = (), names: Mapping[str, Any] | None = None) -> Text:
    """Return `kernel` with other values for some of its module's names, also in the device functions it calls.

    All of them share one scope: numba's simulator puts its own `cuda` into the kernel's and leaves it there while
    the threads run, which it cannot do for scopes that threads enter and leave at different times.
    """
    scope = {**kernel.__globals__, **(names or {})}
    for helper in helpers:
        scope[helper.__name__] = cuda.jit(device=True)(_copy(helper, scope))
    return _copy(kernel, scope)


def _copy(function: Text, scope: dict[str, Any]) -> FunctionType:
    return FunctionType(function.__code__, scope, function.__name__)


def compiled(function: Text, registers: int | None = None) -> Any:
    """Return a kernel that is compiled when it is first launched, to use at most so many registers per thread."""
    config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # that a short text leaves a GPU idle is no news to its reader
    # the simulator knows no such option
    options = {} if registers is None or config.ENABLE_CUDASIM else {"max_registers": registers}
    return cuda.jit(function, **options)
