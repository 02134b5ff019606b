"""NVIDIA GPUs as a device: rows go up, kernels run, rows come down, each calling thread in a stream of its own.

While one thread's rows are computed, those of the others are on their way up or down. Blocks are what a GPU is for;
floats among each other stay on the CPU: nothing is searched there, only moved.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda as numba_cuda

from gguf_mla import ggtypes
from gguf_mla.codec import cuda_driver, cuda_kernels
from gguf_mla.codec.on_cpu import CPU
from gguf_mla.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gguf_mla.codec.encoding import Encoding
    from gguf_mla.ggtypes import TensorType

Array = np.ndarray[Any, Any]
PIECE_VALUES = 1 << 24  # at most so many values are on a GPU at a time for one thread


class GpuStream:
    """What one thread needs of one GPU: a stream, and memory on both sides that is kept and grows.

    queue  numba's stream: what is queued in it runs in order
    limit  values it takes at a time; less than PIECE_VALUES once the GPU's memory did not suffice
    """

    def __init__(self, gpu: int) -> None:
        self.gpu, self.limit = gpu, PIECE_VALUES
        self.queue = numba_cuda.stream()
        self._memory: dict[str, Any] = {}
        self._pinned: dict[str, Array] = {}

    def room(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an array on the GPU, uninitialised; the next of this name takes its place."""
        count = math.prod(shape)
        if name not in self._memory or self._memory[name].size < count:
            self._memory.pop(name, None)
            with cuda_kernels.LAUNCHING:  # numba's allocator is not thread-safe
                self._memory[name] = numba_cuda.device_array(count, dtype)
        return self._memory[name][:count].reshape(*shape)

    def up(self, name: str, array: Array) -> Any:
        """Queue the way up of an array."""
        pinned = self.staged(f"{name} up", array.shape, array.dtype)
        np.copyto(pinned, array)
        target = self.room(name, array.shape, array.dtype)
        target.copy_to_device(pinned, stream=self.queue)
        return target

    def down(self, name: str, array: Any, out: Array) -> None:
        """Bring an array of the GPU down when everything before is done."""
        pinned = self.staged(f"{name} down", out.shape, out.dtype)
        array.copy_to_host(pinned, stream=self.queue)
        self.queue.synchronize()
        np.copyto(out, pinned)

    def launch(self, kernel: cuda_kernels.Kernel, threads: int, *arguments: Any) -> None:
        """Queue a kernel of `threads` threads."""
        cuda_kernels.launch(kernel, threads, self.queue, *arguments)

    def shrink(self, values: int) -> None:
        """Give all memory back, and from now on ask for that of `values` at most."""
        self.queue.synchronize()
        self._memory.clear()
        self._pinned.clear()
        self.limit = values

    def staged(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return page-locked memory of the host, from which copies need not be waited for."""
        nbytes = math.prod(shape) * dtype.itemsize
        if name not in self._pinned or self._pinned[name].size < nbytes:
            self._pinned.pop(name, None)
            with cuda_kernels.LAUNCHING:
                self._pinned[name] = numba_cuda.pinned_array(nbytes, np.uint8)
        staged: Array = self._pinned[name][:nbytes].view(dtype).reshape(shape)
        return staged


class Cuda:
    """A `device.Device` over one or several GPUs: the first thread gets a stream of one, the second of the next."""

    takes_blocks = True

    def __init__(self, name: str, gpus: Sequence[int]) -> None:
        self.name, self.gpus = name, gpus
        self.title = ", ".join(dict.fromkeys(cuda_driver.title(gpu) for gpu in gpus))
        self._turns = itertools.cycle(gpus)
        self._idle: list[GpuStream] = []
        self._lock = threading.Lock()

    def members(self) -> Sequence[Cuda]:
        """Return each GPU."""
        return (self,) if len(self.gpus) == 1 else [open_device(gpu) for gpu in self.gpus]

    def encode(
        self, encoding: Encoding, x: Array, source: str, importance: Array | None, out: Array, *, check: bool
    ) -> int:
        """Encode rows on a GPU."""
        tensor_type = encoding.type
        if tensor_type.block == 1:
            return CPU.encode(encoding, x, source, importance, out, check=check)
        cols, found = out.shape[1] // tensor_type.bytes * tensor_type.block, []

        def run(stream: GpuStream, rows: slice) -> None:
            values = _values(stream, x[rows], source, cols)
            special = _special(stream, values) if check else None
            blocks = encoded(stream, encoding, values, importance)
            stream.down("encoded", blocks, out[rows].reshape(-1, tensor_type.bytes))
            if special is not None and _is_set(stream, special):
                found.append(rows.start * cols)

        self._in_pieces(len(out), cols, run)
        return found[0] if found else -1

    def decode(self, tensor_type: TensorType, data: Array, out: Array) -> None:
        """Decode rows on a GPU."""
        if tensor_type.block == 1:
            CPU.decode(tensor_type, data, out)
            return

        def run(stream: GpuStream, rows: slice) -> None:
            values = _values(stream, data[rows], tensor_type.name, out.shape[1])
            stream.down("decoded", values, out[rows])

        self._in_pieces(len(out), out.shape[1], run)

    def decode_there(self, tensor_type: TensorType, data: Array, out: Any) -> None:
        """Decode rows on a GPU into memory of another library there, float32 [rows, cols], and wait for it.

        It has to have `__cuda_array_interface__`, and to be C-contiguous.
        """

        def run(stream: GpuStream, rows: slice) -> None:
            stored = stream.up("stored", data[rows].reshape(-1))
            decoded(stream, tensor_type, stored, cuda_driver.borrowed(out[rows]))
            stream.queue.synchronize()

        self._in_pieces(len(out), out.shape[1], run)

    def _in_pieces(self, rows: int, cols: int, run: Callable[[GpuStream, slice], None]) -> None:
        """Run on all rows, as many at a time as the GPU has memory for."""
        with self.stream() as stream:
            row = 0
            while row < rows:
                step = max(1, stream.limit // cols)
                try:
                    with cuda_driver.explained(self.title):
                        run(stream, slice(row, min(row + step, rows)))
                except cuda_driver.OutOfMemoryError:
                    if step == 1:
                        raise MachineError(
                            f"{self.title} does not have enough memory for one row of {cols} values",
                            remedy="End what else runs there, use fewer --threads, or --device cpu",
                        ) from None
                    stream.shrink(min(step, rows) * cols // 2)
                else:
                    row += step

    @contextlib.contextmanager
    def stream(self) -> Iterator[GpuStream]:
        """Lend a stream that nobody else uses, its GPU the current one."""
        with self._lock:
            stream = self._idle.pop() if self._idle else None
            gpu = stream.gpu if stream else next(self._turns)
        with numba_cuda.gpus[gpu]:
            stream = stream or GpuStream(gpu)
            yield stream
        with self._lock:
            self._idle.append(stream)


def _values(stream: GpuStream, x: Array, source: str, cols: int) -> Any:
    """Return rows of any source as float32 [rows, cols] on the GPU."""
    if source == "F32":
        return stream.up("values", x)
    tensor_type = ggtypes.by_name(source)
    stored = stream.up("stored", x.reshape(-1).view(np.uint8))
    return decoded(stream, tensor_type, stored, stream.room("values", (len(x), cols), np.dtype(np.float32)))


def decoded(stream: GpuStream, tensor_type: TensorType, stored: Any, values: Any) -> Any:
    """Decode bytes that are on the GPU, uint8 [n], into float32 [rows, cols] there, and return that."""
    if tensor_type.block == 1:
        stream.launch(cuda_kernels.decoder(tensor_type), values.size, stored, values.reshape(values.size))
        return values
    blocks = values.size // tensor_type.block
    arguments = (
        stored.reshape(blocks, tensor_type.bytes),
        _tables(tensor_type, stream.gpu),
        values.reshape(blocks, tensor_type.block),
    )
    stream.launch(cuda_kernels.decoder(tensor_type), blocks, *arguments)
    return values


def encoded(stream: GpuStream, encoding: Encoding, values: Any, importance: Array | None) -> Any:
    """Return uint8 [blocks, bytes] on the GPU of values that are there, float32 [rows, cols].

    importance is float32 [cols], on the host, if the encoding is weighted.
    """
    tensor_type = encoding.type
    rows, blocks = values.shape[0], values.size // tensor_type.block
    source = values.reshape(blocks, tensor_type.block)
    out = stream.room("encoded", (blocks, tensor_type.bytes), np.dtype(np.uint8))
    if importance is None:
        stream.launch(cuda_kernels.encoder(encoding), blocks, source, _tables(tensor_type, stream.gpu), out)
        return out
    weights = stream.up("importance", importance.reshape(-1, tensor_type.block))
    spread = stream.room("spread", (rows if tensor_type.row_spread else 1,), np.dtype(np.float32))
    if tensor_type.row_spread:
        stream.launch(cuda_kernels.SPREAD, rows, values, spread)
    tables = _tables(tensor_type, stream.gpu)
    stream.launch(cuda_kernels.encoder(encoding), blocks, source, weights, spread, tables, out)
    return out


def _special(stream: GpuStream, values: Any) -> Any:
    """Look for NaN, infinity and what some types cannot hold."""
    found = stream.up("special", np.zeros(1, np.int32))
    stream.launch(cuda_kernels.SPECIAL, values.size, values.reshape(values.size), found)
    return found


def _is_set(stream: GpuStream, flag: Any) -> bool:
    out = np.zeros(1, np.int32)
    stream.down("special", flag, out)
    return bool(out[0])


@functools.cache
def _tables(tensor_type: TensorType, gpu: int) -> tuple[Any, ...]:
    """Return a type's codebooks on a GPU, the current one."""
    del gpu  # each has its own
    with cuda_kernels.LAUNCHING:
        return tuple(numba_cuda.to_device(table) for table in tensor_type.tables())


@functools.cache
def open_device(number: int | None) -> Cuda:
    """Return all GPUs, or the one of that number; MachineError if they cannot be used."""
    gpus = cuda_driver.usable(number)
    return Cuda("cuda" if number is None else f"cuda:{number}", gpus)
