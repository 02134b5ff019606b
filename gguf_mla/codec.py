"""Rows in, rows out: float values to and from the bytes of a ggml tensor type.

`encode` and `decode` are single-threaded and release the GIL, so that a caller's own threads scale; `quantize` and
`dequantize` thread and chunk for themselves. numba is imported when the first kernel is needed, and only the kernels of
the types in use are compiled or loaded.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla import ggtypes
from gguf_mla.errors import InputError, MachineError
from gguf_mla.ggtypes.shared import floats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gguf_mla.ggtypes import TensorType

Array = np.ndarray[Any, Any]
SOURCES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
}
SOURCE_KINDS = {"F32": 0, "F16": 1, "BF16": 2}  # as `lanes.feed` numbers them
CHUNK_VALUES = 1 << 20
WORTH_A_KERNEL = 1 << 16
KERNEL_STEP = 16  # values a kernel converts at a time; it leaves the rest


def encode(
    x: Array,
    type_name: str,
    *,
    source: str = "F32",
    importance: Array | None = None,
    out: Array | None = None,
    check: bool = True,
) -> Array:
    """Encode rows [rows, cols] as a ggml type: uint8 [rows, row_bytes], the bytes ggml's own quantizer writes.

    x           float32 or float16, told by its dtype; with source="BF16" uint16 bit patterns of bfloat16
    importance  float32 [cols], non-negative: how much each column's error weighs; ignored by types that do not use it
    out         where to write, uint8 [rows, row_bytes], C-contiguous
    check       NaN and infinity raise InputError naming row and column; False encodes them as some bytes or other
    """
    kind = _encodable(type_name)
    x, source = _as_source(x, source)
    _check_importance(kind, importance, x.shape[1])
    out = _output(out, (x.shape[0], kind.row_bytes(x.shape[1])), np.dtype(np.uint8))
    if x.size:
        _encode_rows(kind, x, source, importance, out, check)
    return out


def decode(data: Array, type_name: str, *, out: Array | None = None) -> Array:
    """Decode rows of a ggml type, uint8 [rows, row_bytes], to float32 [rows, cols]."""
    kind = ggtypes.by_name(type_name)
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] % kind.bytes:
        raise InputError(
            f"these are not rows of {kind.name}",
            expected=f"uint8 [rows, a multiple of {kind.bytes}]",
            found=f"{data.dtype} {list(data.shape)}",
        )
    out = _output(out, (data.shape[0], data.shape[1] // kind.bytes * kind.block), np.dtype(np.float32))
    if data.size:
        _decode_rows(kind, np.ascontiguousarray(data), out)
    return out


def _encodable(type_name: str) -> TensorType:
    kind = ggtypes.by_name(type_name)
    if not kind.text:
        raise InputError(f"{kind.name} holds plain numbers; weights are not encoded to it")
    return kind


def _as_source(x: Array, source: str) -> tuple[Array, str]:
    """Rows as a contiguous array of a source format, and that format's name."""
    source = "F16" if x.dtype == np.float16 else source
    if SOURCES.get(source) != x.dtype or x.ndim != 2:
        raise InputError(
            "these rows cannot be encoded",
            expected='[rows, cols] of float32, float16 or, with source="BF16", uint16',
            found=f"{x.dtype} {list(x.shape)} with source={source!r}",
        )
    return np.ascontiguousarray(x), source


def _check_importance(kind: TensorType, importance: Array | None, cols: int) -> None:
    if importance is None:
        if kind.needs_importance:
            raise InputError(
                f"{kind.name} cannot be encoded without importance weights",
                remedy="Give an importance matrix, or choose a type of more bits",
            )
    elif importance.shape != (cols,) or importance.dtype != np.float32:
        raise InputError(
            "the importance weights do not fit the rows",
            expected=f"float32 [{cols}]",
            found=f"{importance.dtype} {list(importance.shape)}",
        )


def _output(out: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise InputError(
            "the output array does not fit",
            expected=f"C-contiguous {dtype} {list(shape)}",
            found=f"{out.dtype} {list(out.shape)}",
        )
    return out


def _encode_rows(kind: TensorType, x: Array, source: str, importance: Array | None, out: Array, check: bool) -> None:
    """Encode checked arguments."""
    if kind.block == 1:
        bad = _encode_values(kind, x.reshape(-1), source, out.reshape(-1), check)
    else:
        bad = _run_encoder(kind, x, source, importance, out.reshape(-1, kind.bytes), check)
    if bad >= 0:
        _report_special(x, source, bad * kind.block)


def _encode_values(kind: TensorType, x: Array, source: str, out: Array, check: bool) -> int:
    """Convert floats: many with a kernel, few (norms, biases) with numpy, which does not wait for numba's import."""
    done = 0
    if x.size >= WORTH_A_KERNEL and source != kind.name:
        from gguf_mla.lanes import kernels  # noqa: PLC0415  # numba, 0.3 s

        bad = int(kernels.value_encoder(kind)(x.view(np.uint8), SOURCE_KINDS[source], check, out))
        if bad >= 0:
            return bad
        done = x.size // KERNEL_STEP * KERNEL_STEP
    bad = floats.encode(x[done:], source, kind.name, out[done * kind.bytes :], check)
    return bad + done if bad >= 0 else -1


def _run_encoder(kind: TensorType, x: Array, source: str, importance: Array | None, blocks: Array, check: bool) -> int:
    from gguf_mla.lanes import kernels  # noqa: PLC0415  # numba, 0.3 s

    flat = x.reshape(-1).view(np.uint8)
    if importance is None or not kind.uses_importance:
        return int(kernels.encoder(kind)(flat, SOURCE_KINDS[source], check, kind.tables(), blocks))
    weights = np.ascontiguousarray(importance)
    run = kernels.weighted_encoder(kind)
    return int(run(flat, SOURCE_KINDS[source], check, weights, kind.tables(), blocks))


def _report_special(x: Array, source: str, start: int) -> None:
    """Raise for the first NaN or infinity at or after flat position `start`."""
    flat = x.reshape(-1)[start:]
    position = start + int(np.argmin(floats.finite(flat, source)))
    row, column = divmod(position, x.shape[1])
    value = floats.to_float32(flat[position - start : position - start + 1], source)[0]
    raise InputError(
        f"the value in row {row}, column {column} is {value}",
        expected="finite values",
        found=value,
        remedy="Repair the source, or allow it (check=False) and accept undefined bytes for that block",
    )


def _decode_rows(kind: TensorType, data: Array, out: Array) -> None:
    if not kind.text:
        out[:] = data.view(_NUMBER_TYPES[kind.name])
    elif kind.block == 1:
        words = data.reshape(-1).view(SOURCES[kind.name])
        _encode_values(ggtypes.by_name("F32"), words, kind.name, out.reshape(-1).view(np.uint8), check=False)
    else:
        from gguf_mla.lanes import kernels  # noqa: PLC0415  # numba, 0.3 s

        kernels.decoder(kind)(data.reshape(-1, kind.bytes), kind.tables(), out.reshape(-1))


_NUMBER_TYPES = {"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64, "F64": np.float64}


def quantize(
    x: Array,
    type: str,  # noqa: A002  # the public name of the argument
    importance: Array | None = None,
    device: str = "cpu",
    threads: int | None = None,
    *,
    source: str = "F32",
    check: bool = True,
) -> Array:
    """Encode [rows, cols] or [n, rows, cols] as a ggml type, on `threads` threads (default: one per core).

    importance is float32 [cols], or [n, cols] for a 3-D tensor: one row per expert or head ([cols] serves all).
    Returns uint8 [rows, row_bytes] or [n, rows, row_bytes]; the bytes do not depend on `threads` or `device`.
    """
    kind = _encodable(type)
    slices = x if x.ndim == 3 else x[np.newaxis]
    weights = _importance_rows(importance, slices.shape)
    out = np.empty((*slices.shape[:2], kind.row_bytes(slices.shape[2])), np.uint8)

    if device != "cpu":
        for index, rows in _row_chunks(slices.shape):
            _encode_on(device, kind, slices[index, rows], source, weights[index], out[index, rows], check)
        return out if x.ndim == 3 else out[0]

    def job(index: int, rows: slice) -> None:
        encode(slices[index, rows], type, source=source, importance=weights[index], out=out[index, rows], check=check)

    _run(job, slices.shape, threads)
    return out if x.ndim == 3 else out[0]


def dequantize(data: Array, type: str, device: str = "cpu", threads: int | None = None) -> Array:  # noqa: A002
    """Decode uint8 [rows, row_bytes] or [n, rows, row_bytes] to float32 of as many rows, on `threads` threads."""
    kind = ggtypes.by_name(type)
    slices = data if data.ndim == 3 else data[np.newaxis]
    cols = slices.shape[2] // kind.bytes * kind.block
    out = np.empty((*slices.shape[:2], cols), np.float32)

    if device != "cpu":
        for index, rows in _row_chunks(out.shape):
            _decode_on(device, kind, slices[index, rows], out[index, rows])
        return out if data.ndim == 3 else out[0]

    def job(index: int, rows: slice) -> None:
        decode(slices[index, rows], type, out=out[index, rows])

    _run(job, out.shape, threads)
    return out if data.ndim == 3 else out[0]


def _cuda(device: str) -> Any:
    """Return the CUDA kernels, if `device` is cuda and there is one."""
    if device != "cuda":
        raise InputError(f"there is no device {device!r}", expected="cpu or cuda", found=device)
    from gguf_mla.lanes import cuda  # noqa: PLC0415  # numba, 0.3 s

    if not cuda.available():
        raise MachineError("no CUDA device can be used here", remedy="Use --device cpu: the bytes are the same")
    return cuda


def _encode_on(
    device: str, kind: TensorType, x: Array, source: str, importance: Array | None, out: Array, check: bool
) -> None:
    """Encode rows on a GPU; the float types stay on the CPU, which is as fast as the way there."""
    cuda = _cuda(device)
    if kind.block == 1:
        encode(x, kind.name, source=source, out=out, check=check)
        return
    x, source = _as_source(x, source)
    _check_importance(kind, importance, x.shape[1])
    values = floats.to_float32(x, source)
    if check and not floats.finite(values, "F32").all():
        _report_special(x, source, 0)
    cuda.encode(kind, values, importance, out)


def _decode_on(device: str, kind: TensorType, data: Array, out: Array) -> None:
    """Decode rows on a GPU, likewise."""
    cuda = _cuda(device)
    if kind.block == 1:
        decode(data, kind.name, out=out)
    else:
        cuda.decode(kind, data, out)


def _importance_rows(importance: Array | None, shape: tuple[int, ...]) -> list[Array | None]:
    """One importance row per slice of a [n, rows, cols] tensor."""
    if importance is None or importance.ndim == 1:
        return [importance] * shape[0]
    if importance.shape != (shape[0], shape[2]):
        raise InputError(
            "the importance weights do not fit the tensor",
            expected=f"float32 [{shape[0]}, {shape[2]}]",
            found=f"{importance.dtype} {list(importance.shape)}",
        )
    return list(importance)


def _row_chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    """Pieces of about CHUNK_VALUES values of a [n, rows, cols] tensor."""
    step = max(1, CHUNK_VALUES // max(1, shape[2]))
    for index in range(shape[0]):
        for row in range(0, shape[1], step):
            yield index, slice(row, row + step)


def _run(job: Callable[[int, slice], None], shape: tuple[int, ...], threads: int | None) -> None:
    """Run `job` on every piece; one thread needs no pool, which keeps a debugger's view simple."""
    count = threads or len(os.sched_getaffinity(0))
    pieces = list(_row_chunks(shape))
    if count == 1 or len(pieces) < 2:
        for piece in pieces:
            job(*piece)
        return
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda piece: job(*piece), pieces))
