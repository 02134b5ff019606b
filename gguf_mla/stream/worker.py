"""The worker: reads the rows of a task, encodes them, and writes them to every file that wants them."""

from __future__ import annotations

import functools
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gguf_mla import codec, ggtypes
from gguf_mla.codec import weighing
from gguf_mla.codec.on_cpu import CPU
from gguf_mla.errors import InputError, RangeError
from gguf_mla.files import clock
from gguf_mla.files.clock import stage
from gguf_mla.files.os_copy import copy_range
from gguf_mla.sources.finite import check_finite
from gguf_mla.sources.tensor import BlockSource, FileRange
from gguf_mla.stream.engine import Done

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from gguf_mla.codec.device import Device
    from gguf_mla.files.output import OutputFile
    from gguf_mla.plan.jobs import Importance, Part, TensorJob
    from gguf_mla.sources.tensor import Raw, RawSource, SourceTensor
    from gguf_mla.stream.engine import Target, Task

    Weights = Callable[[str, tuple[int, ...]], NDArray[np.float32] | None]

RECENT = 8  # tensors whose importance is kept between tasks


class TensorWorker:
    """Does tasks with the sources and files that this process has opened, from any number of threads.

    sources     by the names that the tasks have
    importance  weights by tensor
    files       in the order that the targets number them
    device      encodes
    forgetting  whether the OS may drop what was read: for a run that would flood the page cache
    """

    def __init__(
        self,
        sources: Mapping[str, SourceTensor],
        importance: Importance,
        files: Sequence[OutputFile],
        device: Device = CPU,
        *,
        forgetting: bool = False,
    ) -> None:
        self._sources, self._files, self._device, self._forgetting = sources, files, device, forgetting
        self._importance, self._literal = functools.lru_cache(RECENT)(importance.rows), importance.literal

    def expect(self, task: Task) -> None:
        """Have the OS fetch the rows of a task."""
        if task.claimed is None:
            self._sources[task.part.source].will_read(task.start, task.stop)

    def do(self, task: Task) -> Done:
        """Write the rows of a task to all its targets, unless they are there already."""
        clock.take()  # what this thread did before does not belong to the task
        source = self._sources[task.part.source]
        if task.claimed is not None and self._is_written(task, source):
            return Done(task.number, task.claimed, task.nbytes, clock.take(), taken_over=True)
        encode = codec.encode if self._literal else weighing.encode
        rows = Rows(task, source, self._importance, self._device, encode)
        sums = tuple(write(rows, target, self._files[target.file]) for target in task.targets)
        if self._forgetting:
            source.was_read(task.start, task.stop)
        return Done(task.number, sums, task.nbytes, clock.take(), rows.remarks)

    def _is_written(self, task: Task, source: SourceTensor) -> bool:
        """Whether the bytes in all targets have the checksums that an earlier run has noted.

        What the OS has copied was never seen here; to copy it again costs no more than to compare it.
        """
        copied = [is_copied(task.part, source, target) for target in task.targets]
        if any(seen == 0 for seen, copy in zip(task.claimed or (), copied, strict=True) if copy):
            return False
        found = (self._files[target.file].read(target.offset, target.nbytes) for target in task.targets)
        return tuple(map(checksum, found)) == task.claimed


class Witness(TensorWorker):
    """A worker that also looks at what the OS has copied: its checksums are those of all bytes."""

    def do(self, task: Task) -> Done:
        """Write the rows of a task to all its targets, unless they are there already."""
        done = super().do(task)
        if all(done.sums):
            return done
        sums = (
            seen or checksum(self._files[target.file].read(target.offset, target.nbytes))
            for target, seen in zip(task.targets, done.sums, strict=True)
        )
        return replace(done, sums=tuple(sums))


def write(rows: Rows, target: Target, file: OutputFile) -> int:
    """Write rows to a target and return their checksum, 0 for what was copied; InputError when a value is not finite.

    Rows whose type does not change are copied byte for byte.
    """
    if is_copied(rows.task.part, rows.source, target):
        with stage("copy"):
            return _copy(rows.raw(), file, target.offset)
    encoded = rows.encoded(target)
    sum_ = checksum(encoded)
    file.write(encoded, target.offset)
    return sum_


def _copy(raw: Raw, file: OutputFile, offset: int) -> int:
    """Copy bytes, and return their checksum, 0 where they were not looked at."""
    if isinstance(raw.data, FileRange):
        return copy_range(raw.data.file, raw.data.offset, file, offset, raw.data.nbytes)
    file.write(raw.data, offset)
    return 0


def is_handed_over(device: Device, source: SourceTensor, job: TensorJob | Target, part: Part) -> bool:
    """Whether a device gets the rows of a quantized source as they are stored, and decodes them itself."""
    if not device.takes_blocks or not isinstance(source, BlockSource) or source.raw_type is None:
        return False
    blocks = all(ggtypes.by_name(name).block > 1 for name in (source.raw_type, job.type))
    return blocks and not part.transposed and job.via is None


def is_copied(part: Part, source: SourceTensor, job: TensorJob | Target) -> bool:
    """Whether rows keep their type and are copied byte for byte."""
    return source.raw_type == job.type and not part.transposed


def checksum(data: NDArray[Any]) -> int:
    """Return the CRC-32 of an array's bytes."""
    with stage("checksum"):
        return zlib.crc32(data.data)


class Rows:
    """The rows of a task in the forms that its targets ask for, each made once and only if one of them asks.

    `importance` returns the weights of a tensor by name and shape, `encode` is how they are used; `remarks` is what
    reading has shown so far.
    """

    def __init__(
        self,
        task: Task,
        source: SourceTensor,
        importance: Weights,
        device: Device,
        encode: Callable[..., NDArray[Any]] = codec.encode,
    ) -> None:
        self.task, self.source, self._importance, self._device = task, source, importance, device
        self._encode_rows = encode
        self.remarks: tuple[Any, ...] = ()
        self._raw: Raw | None = None
        self._values: NDArray[Any] | None = None
        self._blocks: NDArray[np.uint8] | None = None

    def raw(self) -> Raw:
        """Return the rows as the source's `raw_type`."""
        if self._raw is None:
            self._raw = cast("RawSource", self.source).raw(self.task.start, self.task.stop)
            self.remarks = self._raw.remarks
        return self._raw

    def encoded(self, target: Target) -> NDArray[np.uint8]:
        """Return the rows as a target wants them; InputError when a value is not finite or too large for the type."""
        if is_handed_over(self._device, self.source, target, self.task.part):
            if self._blocks is None:
                self._blocks = cast("BlockSource", self.source).read_raw(self.task.start, self.task.stop)
            return self._encode(self._blocks, str(self.source.raw_type), target)
        values, values_type = self._rounded() if target.via == "BF16" else (self._decoded(), self.source.values)
        if values_type == target.type:
            self._check()
            return values.view(np.uint8)
        return self._encode(values, values_type, target)

    def _encode(self, rows: NDArray[Any], source_type: str, target: Target) -> NDArray[np.uint8]:
        with stage("encode"):
            weights = self._importance(self.task.name, self.task.shape)
            row = None if weights is None else weights[self.task.index % len(weights)]
            try:
                return self._encode_rows(rows, target.type, source=source_type, importance=row, device=self._device)
            except RangeError as error:
                raise self._located(error) from None
            except InputError:
                self._check()  # which says where in the source
                raise

    def _located(self, error: RangeError) -> RangeError:
        """Return the error with the source's name, row and column; what was turned is turned back."""
        row, column = (error.column, error.row) if self.task.part.transposed else (error.row, error.column)
        return RangeError(self.task.start + row, column, error.value, error.type_name, self.source.name)

    def _check(self) -> None:
        """Raise InputError for NaN or infinity as the source has it; encoding notices, but does not know where."""
        with stage("decode"):
            turned = self._decoded()
            check_finite(turned.T if self.task.part.transposed else turned, self.task.start, self.source)

    def _rounded(self) -> tuple[NDArray[Any], str]:
        """Return the values as a BF16 file would have held them."""
        values, values_type = self._decoded(), self.source.values
        if values_type == "BF16":
            return values, values_type
        with stage("encode"):
            return codec.encode(values, "BF16", source=values_type, check=False).view(np.uint16), "BF16"

    def _decoded(self) -> NDArray[Any]:
        if self._values is None:
            with stage("decode"):
                values = self.source.read(self.task.start, self.task.stop)
                self._values = np.ascontiguousarray(values.T) if self.task.part.transposed else values
        return self._values
