"""The unit of work: some rows of one source, read and decoded once, encoded for every file that wants them."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gguf_mla import codec, ggtypes
from gguf_mla.codec.on_cpu import CPU
from gguf_mla.errors import InputError
from gguf_mla.files.clock import stage
from gguf_mla.sources.finite import check_finite
from gguf_mla.sources.tensor import BlockSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from gguf_mla.codec.device import Device
    from gguf_mla.files.output import OutputFile
    from gguf_mla.plan.jobs import Importance, Part, TensorJob
    from gguf_mla.sources.tensor import SourceTensor

CHUNK_VALUES = 1 << 20  # 4 MiB as float32: small enough for a core's share of the cache, large enough to hide Python


Sums = tuple[int, ...]  # a checksum for each place of a chunk


@dataclass(frozen=True)
class Place:
    """A tensor in a file that is being written: what it will be and where its data begin."""

    file: OutputFile
    job: TensorJob
    offset: int


@dataclass(frozen=True)
class Chunk:
    """Rows `start:stop` of part number `index` of a tensor, and for each file where their encoded bytes go.

    `spans` are offset and length in each place's file; `number` counts the chunks of a run.
    """

    number: int
    part: Part
    index: int
    start: int
    stop: int
    places: Sequence[Place]
    spans: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        """How many bytes are written, to all files together."""
        return sum(length for _, length in self.spans)


def chunks(tensors: Iterable[Sequence[Place]]) -> Iterator[Chunk]:
    """Cut every part of every tensor into chunks of about CHUNK_VALUES values; a transposed part stays whole.

    All places of a tensor have the same shape and parts; their types may differ.
    """
    numbers = itertools.count()
    for places in tensors:
        row_bytes = [place.job.spec.row_bytes for place in places]
        columns = _columns(places[0].job)
        row = 0
        for index, part in enumerate(places[0].job.parts):
            for start, stop, rows in _pieces(part, places[0].job, columns):
                spans = tuple(
                    (place.offset + row * size, rows * size) for place, size in zip(places, row_bytes, strict=True)
                )
                yield Chunk(next(numbers), part, index, start, stop, places, spans)
                row += rows


def _columns(job: TensorJob) -> int:
    """How many columns each transposed part has in its source, which are rows of the output."""
    transposed = sum(part.transposed for part in job.parts)
    others = sum(part.stop - part.start for part in job.parts if not part.transposed)
    return (job.spec.rows - others) // max(1, transposed)


def _pieces(part: Part, job: TensorJob, columns: int) -> Iterator[tuple[int, int, int]]:
    """Yield first and last source row of each chunk, and how many rows of the output it gives."""
    if part.transposed:
        yield part.start, part.stop, columns
        return
    step = max(1, CHUNK_VALUES // job.shape[-1])
    for start in range(part.start, part.stop, step):
        stop = min(start + step, part.stop)
        yield start, stop, stop - start


def process(chunk: Chunk, source: SourceTensor, importance: Importance, device: Device = CPU) -> Sums:
    """Read a chunk, write it to all its places and return a checksum of each; `device` encodes.

    InputError when a value is not finite. Rows whose type does not change are copied byte for byte.
    """
    data = _Data(chunk, source, device)
    sums = []
    for place, (offset, _) in zip(chunk.places, chunk.spans, strict=True):
        if is_copied(chunk.part, source, place.job):
            with stage("copy"):
                source.copy_raw(chunk.start, chunk.stop, place.file, offset)
            sums.append(0)
            continue
        encoded = data.encoded(place.job, importance)
        sums.append(_checksum(encoded))
        place.file.write(encoded, offset)
    return tuple(sums)


def is_handed_over(device: Device, source: SourceTensor, job: TensorJob, part: Part) -> bool:
    """Whether a device gets the rows of a quantized source as they are stored, and decodes them itself."""
    if not device.takes_blocks or not isinstance(source, BlockSource) or source.raw_type is None:
        return False
    blocks = all(ggtypes.by_name(name).block > 1 for name in (source.raw_type, job.type))
    return blocks and not part.transposed and job.via is None


def is_copied(part: Part, source: SourceTensor, job: TensorJob) -> bool:
    """Whether rows keep their type and are copied byte for byte."""
    return source.raw_type == job.type and not part.transposed


def is_written(chunk: Chunk, source: SourceTensor, sums: Sums) -> bool:
    """Whether the bytes in all places of a chunk have these checksums.

    What the kernel has copied was never seen here; to copy it again costs no more than to compare it.
    """
    if any(is_copied(chunk.part, source, place.job) for place in chunk.places):
        return False
    found = tuple(
        _checksum(place.file.read(offset, length))
        for place, (offset, length) in zip(chunk.places, chunk.spans, strict=True)
    )
    return found == sums


def _checksum(data: NDArray[Any]) -> int:
    with stage("checksum"):
        return zlib.crc32(data.data)


class _Data:
    """The values of a chunk, decoded once for all its places and only if one of them asks."""

    def __init__(self, chunk: Chunk, source: SourceTensor, device: Device) -> None:
        self._chunk, self._source, self._device = chunk, source, device
        self._values: NDArray[Any] | None = None
        self._blocks: NDArray[np.uint8] | None = None

    def encoded(self, job: TensorJob, importance: Importance) -> NDArray[np.uint8]:
        if (blocks := self._handed_over(job)) is not None:
            try:
                return self._encode(blocks, str(self._source.raw_type), job, importance, check=True)
            except InputError:
                self._decoded()  # says where in the tensor the value is
                raise
        values, kind = self._rounded() if job.via == "BF16" else (self._decoded(), self._source.values)
        if kind == job.type:
            return values.view(np.uint8)
        return self._encode(values, kind, job, importance, check=False)

    def _encode(
        self, rows: NDArray[Any], kind: str, job: TensorJob, importance: Importance, *, check: bool
    ) -> NDArray[np.uint8]:
        with stage("encode"):
            weights = importance(job.name, job.shape)
            row = None if weights is None else weights[self._chunk.index % len(weights)]
            return codec.encode(rows, job.type, source=kind, importance=row, check=check, device=self._device)

    def _handed_over(self, job: TensorJob) -> NDArray[np.uint8] | None:
        """Return the stored blocks, if the device decodes and encodes in one go."""
        if not is_handed_over(self._device, self._source, job, self._chunk.part):
            return None
        if self._blocks is None:
            self._blocks = cast("BlockSource", self._source).read_raw(self._chunk.start, self._chunk.stop)
        return self._blocks

    def _rounded(self) -> tuple[NDArray[Any], str]:
        """Return the values as a BF16 file would have held them."""
        values, kind = self._decoded(), self._source.values
        if kind == "BF16":
            return values, kind
        with stage("encode"):
            return codec.encode(values, "BF16", source=kind, check=False).view(np.uint16), "BF16"

    def _decoded(self) -> NDArray[Any]:
        if self._values is None:
            with stage("decode"):
                values = self._source.read(self._chunk.start, self._chunk.stop)
                check_finite(values, self._chunk.start, self._source)
                self._values = np.ascontiguousarray(values.T) if self._chunk.part.transposed else values
        return self._values
