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

    from gguf_mla.ggtypes import TensorType

Array = np.ndarray[Any, Any]
PIECE_VALUES = 1 << 24  # at most so many values are on a GPU at a time for one thread


class Line:
    """What one thread needs of one GPU: a stream, and memory on both sides that is kept and grows.

    limit  values it takes at a time; less than PIECE_VALUES once the GPU's memory did not suffice
    """

    def __init__(self, gpu: int) -> None:
        self.gpu, self.limit = gpu, PIECE_VALUES
        self.stream = numba_cuda.stream()
        self._memory: dict[str, Any] = {}
        self._pinned: dict[str, Array] = {}

    def room(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an array on the GPU, uninitialised; the next of this name takes its place."""
        count = math.prod(shape)
        if name not in self._memory or self._memory[name].size < count:
            self._memory.pop(name, None)
            with cuda_kernels.LAUNCHING:  # numba's allocator is no friend of threads
                self._memory[name] = numba_cuda.device_array(count, dtype)
        return self._memory[name][:count].reshape(*shape)

    def up(self, name: str, array: Array) -> Any:
        """Queue the way up of an array."""
        pinned = self.staged(f"{name} up", array.shape, array.dtype)
        np.copyto(pinned, array)
        target = self.room(name, array.shape, array.dtype)
        target.copy_to_device(pinned, stream=self.stream)
        return target

    def down(self, name: str, array: Any, out: Array) -> None:
        """Bring an array of the GPU down when everything before is done."""
        pinned = self.staged(f"{name} down", out.shape, out.dtype)
        array.copy_to_host(pinned, stream=self.stream)
        self.stream.synchronize()
        np.copyto(out, pinned)

    def launch(self, name: str, kind: TensorType | None, threads: int, *arguments: Any) -> None:
        """Queue a kernel."""
        cuda_kernels.launch(name, kind, threads, self.stream, *arguments)

    def shrink(self, values: int) -> None:
        """Give all memory back, and from now on ask for that of `values` at most."""
        self.stream.synchronize()
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
    """A `device.Device` over one or several GPUs: the first thread gets a line to the first, the second to the next."""

    takes_blocks = True

    def __init__(self, name: str, gpus: Sequence[int]) -> None:
        self.name, self.gpus = name, gpus
        self.title = ", ".join(dict.fromkeys(cuda_driver.title(gpu) for gpu in gpus))
        self._turns = itertools.cycle(gpus)
        self._idle: list[Line] = []
        self._lock = threading.Lock()

    def members(self) -> Sequence[Cuda]:
        """Return each GPU."""
        return (self,) if len(self.gpus) == 1 else [open_device(gpu) for gpu in self.gpus]

    def encode(
        self, kind: TensorType, x: Array, source: str, importance: Array | None, out: Array, *, check: bool
    ) -> int:
        """Encode rows on a GPU."""
        if kind.block == 1:
            return CPU.encode(kind, x, source, importance, out, check=check)
        weights = importance if kind.uses_importance else None
        cols, found = out.shape[1] // kind.bytes * kind.block, []

        def run(line: Line, rows: slice) -> None:
            values = _values(line, x[rows], source, cols)
            special = _special(line, values) if check else None
            line.down("encoded", encoded(line, kind, values, weights), out[rows].reshape(-1, kind.bytes))
            if special is not None and _is_set(line, special):
                found.append(rows.start * cols)

        self._in_pieces(len(out), cols, run)
        return found[0] if found else -1

    def decode(self, kind: TensorType, data: Array, out: Array) -> None:
        """Decode rows on a GPU."""
        if kind.block == 1:
            CPU.decode(kind, data, out)
            return

        def run(line: Line, rows: slice) -> None:
            values = _values(line, data[rows], kind.name, out.shape[1])
            line.down("decoded", values, out[rows])

        self._in_pieces(len(out), out.shape[1], run)

    def _in_pieces(self, rows: int, cols: int, run: Callable[[Line, slice], None]) -> None:
        """Run on all rows, as many at a time as the GPU has memory for."""
        with self.line() as line:
            row = 0
            while row < rows:
                step = max(1, line.limit // cols)
                try:
                    with cuda_driver.explained(self.title):
                        run(line, slice(row, min(row + step, rows)))
                except cuda_driver.OutOfMemoryError:
                    if step == 1:
                        raise MachineError(
                            f"{self.title} has not memory enough for one row of {cols} values",
                            remedy="End what else runs there, use fewer --threads, or --device cpu",
                        ) from None
                    line.shrink(min(step, rows) * cols // 2)
                else:
                    row += step

    @contextlib.contextmanager
    def line(self) -> Iterator[Line]:
        """Lend a line that nobody else uses, its GPU the current one."""
        with self._lock:
            line = self._idle.pop() if self._idle else None
            gpu = line.gpu if line else next(self._turns)
        with numba_cuda.gpus[gpu]:
            line = line or Line(gpu)
            yield line
        with self._lock:
            self._idle.append(line)


def _values(line: Line, x: Array, source: str, cols: int) -> Any:
    """Return rows of any source as float32 [rows, cols] on the GPU."""
    if source == "F32":
        return line.up("values", x)
    kind = ggtypes.by_name(source)
    stored = line.up("stored", x.reshape(-1).view(np.uint8))
    return decoded(line, kind, stored, line.room("values", (len(x), cols), np.dtype(np.float32)))


def decoded(line: Line, kind: TensorType, stored: Any, values: Any) -> Any:
    """Decode bytes that are on the GPU, uint8 [n], into float32 [rows, cols] there, and return that."""
    if kind.block == 1:
        line.launch("decode_value", kind, values.size, stored, values.reshape(values.size))
        return values
    blocks = values.size // kind.block
    arguments = stored.reshape(blocks, kind.bytes), _tables(kind, line.gpu), values.reshape(blocks, kind.block)
    line.launch("decode_block", kind, blocks, *arguments)
    return values


def encoded(line: Line, kind: TensorType, values: Any, importance: Array | None) -> Any:
    """Return uint8 [blocks, bytes] on the GPU of values that are there, float32 [rows, cols]; importance is [cols]."""
    rows, blocks = values.shape[0], values.size // kind.block
    source = values.reshape(blocks, kind.block)
    out = line.room("encoded", (blocks, kind.bytes), np.dtype(np.uint8))
    if importance is None:
        line.launch("encode", kind, blocks, source, _tables(kind, line.gpu), out)
        return out
    weights = line.up("importance", importance.reshape(-1, kind.block))
    spread = line.room("spread", (rows if kind.row_spread else 1,), np.dtype(np.float32))
    if kind.row_spread:
        line.launch("spread", None, rows, values, spread)
    line.launch("encode_weighted", kind, blocks, source, weights, spread, _tables(kind, line.gpu), out)
    return out


def _special(line: Line, values: Any) -> Any:
    """Look for NaN and infinity."""
    found = line.up("special", np.zeros(1, np.int32))
    line.launch("special", None, values.size, values.reshape(values.size), found)
    return found


def _is_set(line: Line, flag: Any) -> bool:
    out = np.zeros(1, np.int32)
    line.down("special", flag, out)
    return bool(out[0])


@functools.cache
def _tables(kind: TensorType, gpu: int) -> tuple[Any, ...]:
    """Return a type's codebooks on a GPU, the current one."""
    del gpu  # each has its own
    with cuda_kernels.LAUNCHING:
        return tuple(numba_cuda.to_device(table) for table in kind.tables())


@functools.cache
def open_device(number: int | None) -> Cuda:
    """Return all GPUs, or the one of that number; MachineError if they cannot be used."""
    gpus = cuda_driver.usable(number)
    return Cuda("cuda" if number is None else f"cuda:{number}", gpus)
