"""A plan: every tensor of the output, where its rows come from, and the metadata.

Plain data, made before a byte of a tensor is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

from gguf_mla.container.writer import Foreign, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from gguf_mla.container.values import Value


class Importance(Protocol):
    """How much each input column of every tensor matters when it is rounded."""

    @property
    def literal(self) -> bool:
        """Whether zeros are taken as they are; otherwise blocks about which nothing is known are encoded without."""

    @property
    def identity(self) -> Any:
        """What decides the weights, as JSON-ready data: what has the same identity has the same weights."""

    def rows(self, name: str, shape: tuple[int, ...], /) -> NDArray[np.float32] | None:
        """Return a tensor's weights, float32 [n, cols], a row for each expert or head or one for all; None for none."""


class _NoImportance:
    """The importance of a run without a matrix: none for any tensor."""

    identity, literal = None, True

    def rows(self, _name: str, _shape: tuple[int, ...], /) -> None:
        """Return None."""


NO_IMPORTANCE: Importance = _NoImportance()


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `start:stop` of a source tensor; an output tensor is its parts, one after the other.

    `columns` is None for rows that are taken as they are. For rows that are transposed it is the number of the source's
    columns, each of which becomes a row.
    """

    source: str
    start: int
    stop: int
    columns: int | None = None

    @property
    def transposed(self) -> bool:
        """Whether columns become rows."""
        return self.columns is not None

    @property
    def rows(self) -> int:
        """How many rows of the output the part gives."""
        return self.stop - self.start if self.columns is None else self.columns


@dataclass(frozen=True)
class Untyped:
    """An output tensor that has no type yet.

    `stored` is the source's format, `ggml_type` the type it has in a source GGUF file; in a checkpoint the block type
    that its rows can be copied to, None where they have to be encoded. `foreign` is there for another program's type,
    whose parts are numbered pieces of bytes.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    stored: str
    ggml_type: str | None = None
    foreign: Foreign | None = None


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
    foreign: Foreign | None = None

    @property
    def spec(self) -> TensorSpec:
        """The tensor as the file declares it."""
        return TensorSpec(self.name, self.shape, self.type, self.foreign)


@dataclass(frozen=True)
class Plan:
    """What will be written.

    `dropped` maps a source tensor that is not used to the reason; `warnings` are sentences; `substituted` maps an
    output tensor whose rows do not fit the type that the recipe gives it to that type.
    """

    metadata: Mapping[str, Value]
    tensors: tuple[TensorJob, ...]
    dropped: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    substituted: Mapping[str, str] = field(default_factory=dict)

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
        """Return the plan as JSON-ready data for people; arrays of metadata as their length."""
        return {
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "bytes_by_type": self.bytes_by_type(),
            "metadata": {key: _short(value.data) for key, value in self.metadata.items()},
            "tensors": [_told(job) for job in self.tensors],
            "dropped": dict(self.dropped),
            "warnings": list(self.warnings),
            "substituted": dict(self.substituted),
        }


def _told(job: TensorJob) -> dict[str, Any]:
    """Return a tensor's fields; `asdict` would copy every part of every expert only to be replaced."""
    told = {field.name: getattr(job, field.name) for field in fields(job)}
    parts = [
        {"source": part.source, "start": part.start, "stop": part.stop, "transposed": part.transposed}
        for part in job.parts
    ]
    return told | {"parts": parts, "foreign": job.foreign and asdict(job.foreign), "bytes": job.spec.nbytes}


def _short(data: Any) -> Any:
    return {"length": len(data)} if isinstance(data, Sequence) and not isinstance(data, str) else data
