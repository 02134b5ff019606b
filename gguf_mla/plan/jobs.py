"""A plan: every tensor of the output, where its rows come from, and the metadata.

Plain data, made before a byte of a tensor is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from gguf_mla.container.writer import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from gguf_mla.container.values import Value

# A tensor's importance weights by name and shape: float32 [n, cols], a row for each expert or head, or one for all.
Importance = Callable[[str, tuple[int, ...]], "NDArray[np.float32] | None"]


@dataclass(frozen=True)
class Part:
    """Rows `start:stop` of a source tensor, transposed or not; an output tensor is its parts, one after the other."""

    source: str
    start: int
    stop: int
    transposed: bool = False


@dataclass(frozen=True)
class Untyped:
    """An output tensor that has no type yet.

    `stored` is the source's format, `ggml_type` the type it has in a source GGUF file; in a checkpoint the block type
    that its rows can be copied to, None where they have to be encoded.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    stored: str
    ggml_type: str | None = None


@dataclass(frozen=True)
class TensorJob:
    """One tensor of the output.

    `shape` has the slowest dimension first, `stored` is the source's format, `reason` why the tensor gets its type,
    `via` a type that decoded values are rounded to before they are encoded (as if an intermediate file had held them).
    """

    name: str
    shape: tuple[int, ...]
    type: str
    parts: tuple[Part, ...]
    stored: str
    reason: str
    via: str | None = None

    @property
    def spec(self) -> TensorSpec:
        """The tensor as the file declares it."""
        return TensorSpec(self.name, self.shape, self.type)


@dataclass(frozen=True)
class Plan:
    """What will be written. `dropped` maps a source tensor that is not used to the reason; `warnings` are sentences."""

    metadata: Mapping[str, Value]
    tensors: tuple[TensorJob, ...]
    dropped: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data."""
        return sum(job.spec.nbytes for job in self.tensors)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(job.spec.rows * job.shape[-1] for job in self.tensors)

    def bytes_by_type(self) -> dict[str, int]:
        """Bytes of tensor data per ggml type, most first."""
        total: Counter[str] = Counter()
        for job in self.tensors:
            total[job.type] += job.spec.nbytes
        return dict(total.most_common())

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data; arrays of metadata as their length."""
        return {
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "bytes_by_type": self.bytes_by_type(),
            "metadata": {key: _short(value.data) for key, value in self.metadata.items()},
            "tensors": [asdict(job) | {"bytes": job.spec.nbytes} for job in self.tensors],
            "dropped": dict(self.dropped),
            "warnings": list(self.warnings),
        }


def _short(data: Any) -> Any:
    return {"length": len(data)} if isinstance(data, Sequence) and not isinstance(data, str) else data
