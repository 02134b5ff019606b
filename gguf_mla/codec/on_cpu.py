"""The CPU as a device: SIMD kernels for blocks, numpy for few floats. The calling thread does the work."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla import ggtypes
from gguf_mla.codec.encoding import Encoding
from gguf_mla.errors import InputError
from gguf_mla.ggtypes.shared import floats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_mla.ggtypes import TensorType

Array = np.ndarray[Any, Any]
SOURCE_CODES = {"F32": 0, "F16": 1, "BF16": 2}  # as `feed` numbers them
WORTH_A_KERNEL = 1 << 16
KERNEL_STEP = 16  # values a kernel converts at a time; it leaves the rest
NUMBER_TYPES = {"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64, "F64": np.float64}


class Cpu:
    """A `device.Device`; the interpreter's lock is released while a kernel runs, so that callers' threads scale."""

    name, title, takes_blocks = "cpu", "the CPU", False

    def members(self) -> Sequence[Cpu]:
        """Return itself: threads are the caller's."""
        return (self,)

    def encode(
        self, encoding: Encoding, x: Array, source: str, importance: Array | None, out: Array, *, check: bool
    ) -> int:
        """Encode rows."""
        if source not in SOURCE_CODES:
            x, source = self._decoded(ggtypes.by_name(source), x), "F32"
        if encoding.type.block == 1:
            return _encode_values(encoding, x.reshape(-1), source, out.reshape(-1), check)
        bad = _encode_blocks(encoding, x, source, importance, out.reshape(-1, encoding.type.bytes), check)
        return bad * encoding.type.block if bad >= 0 else -1

    def decode(self, tensor_type: TensorType, data: Array, out: Array) -> None:
        """Decode rows."""
        if not tensor_type.module_name:
            out[:] = data.view(NUMBER_TYPES[tensor_type.name])
        elif tensor_type.block == 1:
            words = data.reshape(-1).view(floats.SOURCES[tensor_type.name])
            _encode_values(_to_float32(), words, tensor_type.name, out.reshape(-1).view(np.uint8), check=False)
        else:
            from gguf_mla.codec import cpu_kernels  # noqa: PLC0415  # numba, 0.3 s

            room = cpu_kernels.room(tensor_type, tensor_type.block)
            blocks = data.reshape(-1, tensor_type.bytes)
            cpu_kernels.decoder(tensor_type)(blocks, tensor_type.tables(), room, out.reshape(-1))

    def _decoded(self, tensor_type: TensorType, data: Array) -> Array:
        out = np.empty((data.shape[0], data.shape[1] // tensor_type.bytes * tensor_type.block), np.float32)
        self.decode(tensor_type, data, out)
        return out


CPU = Cpu()


def open_device(number: int | None) -> Cpu:
    """Return the CPU, of which there is one."""
    if number is not None:
        raise InputError("the CPU has no number", expected="cpu", found=f"cpu:{number}", remedy="See --threads")
    return CPU


@functools.cache
def _to_float32() -> Encoding:
    """Return the one encoding of plain float32."""
    return Encoding(ggtypes.by_name("F32"))


def _encode_values(encoding: Encoding, x: Array, source: str, out: Array, check: bool) -> int:
    """Convert floats: many with a kernel, few (norms, biases) with numpy, which does not wait for numba's import."""
    done, tensor_type = 0, encoding.type
    if x.size >= WORTH_A_KERNEL and source != tensor_type.name:
        from gguf_mla.codec import cpu_kernels  # noqa: PLC0415  # numba, 0.3 s

        bad = int(cpu_kernels.value_encoder(encoding)(x.view(np.uint8), SOURCE_CODES[source], check, out))
        if bad >= 0:
            return bad
        done = x.size // KERNEL_STEP * KERNEL_STEP
        if done == x.size:
            return -1
    bad = floats.encode(x[done:], source, tensor_type.name, out[done * tensor_type.bytes :], check)
    return bad + done if bad >= 0 else -1


def _encode_blocks(
    encoding: Encoding, x: Array, source: str, importance: Array | None, blocks: Array, check: bool
) -> int:
    from gguf_mla.codec import cpu_kernels  # noqa: PLC0415  # numba, 0.3 s

    values, code, kind = x.reshape(-1).view(np.uint8), SOURCE_CODES[source], encoding.type
    run = cpu_kernels.encoder(encoding)
    room = cpu_kernels.room(kind, kind.block, kind.scratch)
    if importance is None:
        return int(run(values, code, check, kind.tables(), room, blocks))
    more = cpu_kernels.weighted_room(kind, len(x))
    weights = np.ascontiguousarray(importance).view(np.uint8)
    return int(run(values, code, check, weights, kind.tables(), (*room, *more), blocks))
