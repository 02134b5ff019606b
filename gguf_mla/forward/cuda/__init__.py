"""Attention, rotation, routing and the sparse indexer on a GPU, each equal to its CPU form within float32's rounding.

The forward pass takes its attention from here (`attention`, `attend`). Rotation and routing (`pointwise`), the indexer
(`indexer`) and its choice (`selection`) have no caller but the tests: they are an independent second form of what the
CPU computes, to judge a forward pass on a GPU by.

Importing this costs nothing; numba is imported when a GPU is asked for. docs/gpu-attention.md says how it works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gguf_mla.forward.attention import Form


def simulated() -> bool:
    """Whether numba's simulator is in the GPU's place."""
    from gguf_mla.codec.cuda_kernels import SIMULATED  # noqa: PLC0415 - numba

    return SIMULATED


def forms(gpu: int = 0) -> Mapping[str, Form]:
    """Return the forms of attention that a GPU computes, named as the CPU's; MachineError without that GPU."""
    from gguf_mla.forward.cuda.device import on_gpu, require  # noqa: PLC0415 - numba, 0.3 s

    require(gpu)
    from gguf_mla.forward.cuda.attention import FORMS  # noqa: PLC0415 - numba

    return {name: on_gpu(gpu, form) for name, form in FORMS.items()}
