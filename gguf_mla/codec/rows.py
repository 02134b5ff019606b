"""Rows in, rows out: float values to and from the bytes of a ggml tensor type.

`encode` and `decode` are single-threaded and release the GIL, so that a caller's own threads scale; `quantize` and
`dequantize` thread and chunk for themselves. Arguments are checked here, a `device` does the work. numba is imported
when the first kernel is needed, and only the kernels of the types in use are compiled or loaded.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla import ggtypes
from gguf_mla.codec.arrays import empty
from gguf_mla.codec.device import open_device
from gguf_mla.codec.encoding import GGML, choose
from gguf_mla.codec.on_cpu import CPU
from gguf_mla.errors import InputError, RangeError
from gguf_mla.files import platform
from gguf_mla.ggtypes.shared import floats
from gguf_mla.ggtypes.shared.floats import SOURCES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gguf_mla.codec.device import Device
    from gguf_mla.ggtypes import TensorType

Array = np.ndarray[Any, Any]
CHUNK_VALUES = 1 << 20
BEYOND_SCALES = 2.0**29  # Q6_K reaches farthest of those with half-precision scales: 65504 · 128 · 32, and a bit


def encode(
    x: Array,
    type_name: str,
    *,
    source: str = "F32",
    importance: Array | None = None,
    search: str = GGML,
    out: Array | None = None,
    check: bool = True,
    device: Device = CPU,
) -> Array:
    """Encode rows [rows, cols] as a ggml type: uint8 [rows, row_bytes], the bytes ggml's own quantizer writes.

    x           float32 or float16, told by its dtype; with source="BF16" uint16 bit patterns of bfloat16; with the name
                of a block type uint8 [rows, row_bytes] of that
    importance  float32 [cols], non-negative: how much each column's error weighs; ignored by types that do not use it
    search      whose search for scales and levels; "ggml" gives ggml's bytes, a type's file may have others
    out         where to write, uint8 [rows, row_bytes], C-contiguous
    check       NaN and infinity raise InputError naming row and column, and numbers that the type cannot hold
                RangeError; False encodes them as undefined bytes
    """
    encoding = choose(ggtypes.by_name(type_name), search, weighted=importance is not None)
    x, source = _as_source(x, source)
    cols = x.shape[1] if source in SOURCES else _columns(ggtypes.by_name(source), x)
    _check_importance(importance, cols)
    out = _output(out, (x.shape[0], encoding.type.row_bytes(cols)), np.dtype(np.uint8))
    weights = importance if encoding.weighted else None
    found = device.encode(encoding, x, source, weights, out, check=check) if x.size else -1
    if found >= 0:
        values, kind = _as_values(x, source)
        _report_special(values, kind, found)
        device.encode(encoding, x, source, weights, out, check=False)
        _report_overflow(values, kind, encoding.type, out)
    return out


def decode(data: Array, type_name: str, *, out: Array | None = None, device: Device = CPU) -> Array:
    """Decode rows of a ggml type, uint8 [rows, row_bytes], to float32 [rows, cols]."""
    tensor_type = ggtypes.by_name(type_name)
    out = _output(out, (len(data), _columns(tensor_type, data)), np.dtype(np.float32))
    if data.size:
        device.decode(tensor_type, np.ascontiguousarray(data), out)
    return out


def _columns(tensor_type: TensorType, data: Array) -> int:
    """How many values a row of a type's bytes holds; InputError if these are not such rows."""
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] % tensor_type.bytes:
        raise InputError(
            f"these are not rows of {tensor_type.name}",
            expected=f"uint8 [rows, a multiple of {tensor_type.bytes}]",
            found=f"{data.dtype} {list(data.shape)}",
        )
    cols: int = data.shape[1] // tensor_type.bytes * tensor_type.block
    return cols


def _as_source(x: Array, source: str) -> tuple[Array, str]:
    """Rows as a contiguous array of a source format, and that format's name."""
    source = "F16" if x.dtype == np.float16 else source
    if SOURCES.get(source, np.uint8) != x.dtype or x.ndim != 2:
        raise InputError(
            "these rows cannot be encoded",
            expected='[rows, cols] of float32, float16 or, with source="BF16", uint16; uint8 of a block type',
            found=f"{x.dtype} {list(x.shape)} with source={source!r}",
        )
    return np.ascontiguousarray(x), source


def _as_values(x: Array, source: str) -> tuple[Array, str]:
    """Rows of numbers, and their format: blocks of a type decoded, what are numbers already as they are."""
    return (x, source) if source in SOURCES else (decode(x, source), "F32")


def _check_importance(importance: Array | None, cols: int) -> None:
    if importance is not None and (importance.shape != (cols,) or importance.dtype != np.float32):
        raise InputError(
            "the importance weights do not fit the rows",
            expected=f"float32 [{cols}]",
            found=f"{importance.dtype} {list(importance.shape)}",
        )


def _output(out: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if out is None:
        return empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise InputError(
            "the output array does not fit",
            expected=f"C-contiguous {dtype} {list(shape)}",
            found=f"{out.dtype} {list(out.shape)}",
        )
    return out


def _report_special(x: Array, source: str, start: int) -> None:
    """Raise for the first NaN or infinity at or after flat position `start`."""
    flat = x.reshape(-1)[start:]
    finite = floats.finite(flat, source)
    if finite.all():
        return
    position = start + int(np.argmin(finite))
    row, column = divmod(position, x.shape[1])
    value = floats.to_float32(flat[position - start : position - start + 1], source)[0]
    raise InputError(
        f"the value in row {row}, column {column} is {value}",
        expected="finite values",
        found=value,
        remedy="Repair the source, or allow it (check=False) and accept undefined bytes for that block",
    )


def _report_overflow(x: Array, source: str, tensor_type: TensorType, out: Array) -> None:
    """Raise for the largest value of the first block that cannot be read back as numbers, or comes back as next to 0.

    The scale of such a block has overflowed, or the squares of its values have, so that the search went astray.
    """
    decoded, values = decode(out, tensor_type.name), np.abs(floats.to_float32(x, source))
    wrong = ~np.isfinite(decoded) | (values > BEYOND_SCALES) & (np.abs(decoded) < values / 64)
    if not wrong.any():
        return
    row, column = divmod(int(np.argmax(wrong)), wrong.shape[1])
    first = column // tensor_type.block * tensor_type.block
    at = first + int(np.argmax(values[row, first : first + tensor_type.block]))
    raise RangeError(row, at, float(floats.to_float32(x[row, at : at + 1], source)[0]), tensor_type.name)


def quantize(
    x: Array,
    type: str,  # noqa: A002  # the public name of the argument
    importance: Array | None = None,
    device: str = "cpu",
    threads: int | None = None,
    *,
    source: str = "F32",
    check: bool = True,
    search: str = GGML,
) -> Array:
    """Encode [cols], [rows, cols] or [n, rows, cols] as a ggml type, on `threads` threads (default: one per core).

    importance is float32 [cols], or [n, cols] for a 3-D tensor: one row per expert or head ([cols] serves all).
    search says whose search for scales and levels runs: "ggml", or another that the type's file has.
    Returns uint8 of as many dimensions, [..., row_bytes]; the bytes do not depend on `threads` or `device`. Lists are
    taken for float32.
    """
    tensor_type, opened = ggtypes.by_name(type), open_device(device)
    x, importance = _array(x, np.float32), None if importance is None else _array(importance, np.float32)
    choose(tensor_type, search, weighted=importance is not None)  # an error now rather than in a thread
    slices = _slices(x)
    weights = _importance_rows(importance, slices.shape)
    out = empty((*slices.shape[:2], tensor_type.row_bytes(slices.shape[2])), np.dtype(np.uint8))

    def job(index: int, rows: slice) -> None:
        piece, room, row = slices[index, rows], out[index, rows], weights[index]
        encode(piece, type, source=source, importance=row, search=search, out=room, check=check, device=opened)

    _run(job, slices.shape, threads)
    return out.reshape(*x.shape[:-1], out.shape[-1])


def dequantize(data: Array, type: str, device: str = "cpu", threads: int | None = None) -> Array:  # noqa: A002
    """Decode uint8 [row_bytes], [rows, row_bytes] or [n, rows, row_bytes] to as many rows of float32."""
    tensor_type, opened = ggtypes.by_name(type), open_device(device)
    data = _array(data, np.uint8)
    slices = _slices(data)
    cols = slices.shape[2] // tensor_type.bytes * tensor_type.block
    out = empty((*slices.shape[:2], cols), np.dtype(np.float32))

    def job(index: int, rows: slice) -> None:
        decode(slices[index, rows], type, out=out[index, rows], device=opened)

    _run(job, out.shape, threads)
    return out.reshape(*data.shape[:-1], cols)


def _array(x: Any, dtype: Any) -> Array:
    """Return an array as it is, and anything else as an array of that type; InputError for what is not numbers."""
    if isinstance(x, np.ndarray):
        return x
    try:
        return np.asarray(x, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        words = str(error).splitlines()[0][:200]
        raise InputError(
            f"these are not rows of numbers ({words})", remedy="Give an array, or lists of equal length"
        ) from None


def _slices(x: Array) -> Array:
    """Return [cols], [rows, cols] or [n, rows, cols] as [n, rows, cols]."""
    if not 1 <= x.ndim <= 3:
        expected = "[cols], [rows, cols] or [n, rows, cols]"
        raise InputError("this is not a row and not a matrix", expected=expected, found=list(x.shape))
    return x.reshape((1,) * (3 - x.ndim) + x.shape)


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
    count = threads or platform.cores()
    pieces = list(_row_chunks(shape))
    if count == 1 or len(pieces) < 2:
        for piece in pieces:
            job(*piece)
        return
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda piece: job(*piece), pieces))
