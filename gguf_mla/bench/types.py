"""How fast each tensor type is here, and whether the bytes are those of the user's own ggml.

The same rows go through a libggml-base.so (any build of llama.cpp has one) in the same process, one after the other on
one thread, and every byte is compared.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click
import numpy as np

from gguf_mla import codec, ggtypes
from gguf_mla.cli.document import answer
from gguf_mla.codec.device import open_device
from gguf_mla.codec.encoding import uses_importance
from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gguf_mla.codec.device import Device
    from gguf_mla.ggtypes import TensorType

Array = np.ndarray[Any, Any]
COLS = 2048
POISON = 0xA5


@dataclass(frozen=True)
class TypeSpeed:
    """One line of the table; MB are 10**6 bytes of float32 per second and thread."""

    type: str
    importance: bool
    mb_per_s: float
    against_mb_per_s: float | None = None
    ratio: float | None = None
    identical: bool | None = None


class _Traits(ctypes.Structure):
    """The start of ggml's `struct ggml_type_traits`."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


class Ggml:
    """A libggml-base.so of the user's, called through ctypes."""

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
            self._quantize, self._traits = self._library.ggml_quantize_chunk, self._library.ggml_get_type_traits
        except (OSError, AttributeError) as error:
            raise InputError(
                f"this is not a usable libggml-base: {error}",
                file=path,
                remedy="Give the libggml-base.so that lies beside llama.cpp's programs",
            ) from None
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        self._quantize.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
        self._quantize.restype = ctypes.c_size_t
        self._traits.restype = ctypes.POINTER(_Traits)

    def encode(self, x: Array, tensor_type: TensorType, importance: Array | None, out: Array) -> None:
        """Quantize float32 rows [rows, cols] into out uint8 [rows, row_bytes]."""
        weights = None if importance is None else importance.ctypes.data
        self._quantize(tensor_type.id, x.ctypes.data, out.ctypes.data, 0, x.shape[0], x.shape[1], weights)

    def decode(self, data: Array, tensor_type: TensorType, out: Array) -> None:
        """Dequantize rows into out float32 [rows, cols]."""
        traits = self._traits(tensor_type.id).contents
        if traits.blck_size != tensor_type.block or traits.type_size != tensor_type.bytes:
            raise InputError(
                f"this ggml has another idea of {tensor_type.name}",
                expected=f"{tensor_type.block} values in {tensor_type.bytes} bytes",
                found=f"{traits.blck_size} values in {traits.type_size} bytes",
            )
        if not traits.to_float:
            raise InputError(f"ggml has no decoder for {tensor_type.name}", remedy="Leave it out of --types")
        traits.to_float(data.ctypes.data, out.ctypes.data, out.size)


def best_time(run: Callable[[], object], seconds: float) -> float:
    """Shortest of as many runs as fit into `seconds`, after one that does not count: it may compile."""
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best


def compare(
    tensor_type: TensorType,
    importance: bool,
    size: int,
    ours: tuple[Callable[[], object], Array],
    theirs: Any,
    seconds: float,
) -> TypeSpeed:
    """Time both sides and compare what they wrote; `theirs` is None without `--against`."""
    run, written = ours
    rate = size / 1e6 / best_time(run, seconds)
    if theirs is None:
        return TypeSpeed(tensor_type.name, importance, rate)
    run, expected = theirs
    against = size / 1e6 / best_time(run, seconds)
    same = bool((written.view(np.uint8) == expected.view(np.uint8)).all())
    return TypeSpeed(tensor_type.name, importance, rate, against, rate / against, same)


def quantize(
    names: str | None, against: Path | None, rows: int, seconds: float, as_json: bool, device: str, cpu: str | None
) -> None:
    """Print how fast types are encoded."""
    if cpu:
        _measure_as(cpu, "quantize", as_json, types=names, against=against, rows=rows, seconds=seconds, device=device)
    opened, ggml = open_device(device), Ggml(against) if against else None
    report(quantize_results(wanted_types(names), rows, seconds, ggml, opened), ggml is not None, as_json)


def dequantize(
    names: str | None, against: Path | None, rows: int, seconds: float, as_json: bool, device: str, cpu: str | None
) -> None:
    """Print how fast types are decoded."""
    if cpu:
        _measure_as(cpu, "dequantize", as_json, types=names, against=against, rows=rows, seconds=seconds, device=device)
    opened, ggml = open_device(device), Ggml(against) if against else None
    report(dequantize_results(wanted_types(names), rows, seconds, ggml, opened), ggml is not None, as_json)


def _measure_as(cpu: str, job: str, as_json: bool, **options: object) -> NoReturn:
    """Do the same in a process that compiles for another processor, and exit with its status."""
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    raise click.exceptions.Exit(_processor().run_as(cpu, ["bench", job, *given, *(["--json"] if as_json else [])]))


def _processor() -> Any:
    from gguf_mla.bench import processor  # noqa: PLC0415  # numba, 0.3 s

    return processor


def quantize_results(
    tensor_types: list[TensorType], rows: int, seconds: float, ggml: Ggml | None, device: Device
) -> Iterator[TypeSpeed]:
    """Encode random weights as every type, with and without importance where both exist."""
    x, weights = _sample(rows)
    for tensor_type in tensor_types:
        for importance in _importances(tensor_type, weights):
            out, expected = (np.full((rows, tensor_type.row_bytes(COLS)), POISON, np.uint8) for _ in range(2))
            ours = _encoder(tensor_type, x, importance, out, device)
            theirs = ggml and (_ggml_encoder(ggml, tensor_type, x, importance, expected), expected)
            yield compare(tensor_type, importance is not None, x.nbytes, (ours, out), theirs, seconds)


def dequantize_results(
    tensor_types: list[TensorType], rows: int, seconds: float, ggml: Ggml | None, device: Device
) -> Iterator[TypeSpeed]:
    """Decode what `quantize` made of random weights."""
    x, weights = _sample(rows)
    for tensor_type in tensor_types:
        data = codec.encode(x, tensor_type.name, importance=weights if tensor_type.needs_importance else None)
        out, expected = (codec.empty(x.shape, x.dtype) for _ in range(2))
        out[:] = expected[:] = np.nan
        ours = _decoder(tensor_type, data, out, device)
        theirs = ggml and (_ggml_decoder(ggml, tensor_type, data, expected), expected)
        yield compare(tensor_type, False, x.nbytes, (ours, out), theirs, seconds)


def _encoder(
    tensor_type: TensorType, x: Array, importance: Array | None, out: Array, device: Device
) -> Callable[[], object]:
    return lambda: codec.encode(x, tensor_type.name, importance=importance, out=out, device=device)


def _ggml_encoder(
    ggml: Ggml, tensor_type: TensorType, x: Array, importance: Array | None, out: Array
) -> Callable[[], object]:
    return lambda: ggml.encode(x, tensor_type, importance, out)


def _decoder(tensor_type: TensorType, data: Array, out: Array, device: Device) -> Callable[[], object]:
    return lambda: codec.decode(data, tensor_type.name, out=out, device=device)


def _ggml_decoder(ggml: Ggml, tensor_type: TensorType, data: Array, out: Array) -> Callable[[], object]:
    return lambda: ggml.decode(data, tensor_type, out)


def _sample(rows: int) -> tuple[Array, Array]:
    """Return normal weights float32 [rows, COLS] and positive importance float32 [COLS]; the same on every run."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, COLS), np.float32) * np.float32(0.02)
    return x, rng.random(COLS, np.float32) ** 2 * 3 + np.float32(1e-3)


def _importances(tensor_type: TensorType, weights: Array) -> list[Array | None]:
    plain: list[Array | None] = [] if tensor_type.needs_importance else [None]
    return [*plain, weights] if uses_importance(tensor_type) else plain


def wanted_types(names: str | None) -> list[TensorType]:
    """Return the types of a comma-separated list, by default all that are encoded but F32."""
    if names is None:
        return [tensor_type for tensor_type in ggtypes.types().values() if tensor_type.name != "F32"]
    return [ggtypes.by_name(name.strip()) for name in names.split(",")]


def format_result(result: TypeSpeed) -> str:
    """One line of the table."""
    line = f"{result.type:8} {'importance' if result.importance else '':10} {result.mb_per_s:9.0f}"
    if result.ratio is None:
        return line
    return f"{line} {result.against_mb_per_s:9.0f} {result.ratio:7.2f}x  {'same' if result.identical else 'DIFFERENT'}"


def report(results: Iterator[TypeSpeed], against: bool, as_json: bool) -> None:
    """Print results as they come, or all as JSON; status 1 if any byte differed."""
    done = []
    if not as_json:
        click.echo(_processor().described())
        click.echo(f"{'type':8} {'':10} {'MB/s':>9}" + (f" {'ggml MB/s':>9} {'ratio':>8}  bytes" if against else ""))
    for result in results:
        done.append(result)
        if not as_json:
            click.echo(format_result(result))
    if as_json:
        differing = any(result.identical is False for result in done)
        answer(measurements=[asdict(result) for result in done], status=int(differing))
    if any(result.identical is False for result in done):
        raise click.exceptions.Exit(1)
