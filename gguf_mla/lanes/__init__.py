"""The values kernels compute with, and one formula for all of them.

A kernel's formula is plain Python that takes everything it does from this module: ``from gguf_mla import lanes`` and
then ``lanes.load``, ``lanes.where``, `+`, `*`, `<` … One lane carries one block of a tensor; the formula never says how
many lanes there are. It runs

* as it stands, on numpy arrays of 16 (`lanes.plain`): for reading along and debugging;
* compiled for CPUs by `lanes.binding` with `lanes.cpu`: 16 float32 in one SIMD register;
* compiled for CUDA by `codec.cuda_kernels`: one value per thread.

All three round every float32 operation on its own, so all three give the same bytes. What the three offer is listed in
`lanes.plain`, the shortest of them. Importing this package imports neither numpy nor numba.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

Lanes = Any
"""A float32, int32 or mask value over the lanes, or an array of them; which, the formula's docstring says."""


def __getattr__(name: str) -> Any:
    """Run a formula as it stands: its operations are those of `lanes.plain`."""
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(import_module("gguf_mla.lanes.plain"), name)
