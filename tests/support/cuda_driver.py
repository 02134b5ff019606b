"""A pytest plugin: numba's own host code over a stand-in for the driver, whose kernels the CPU's codec computes.

It shows that memory, streams, contexts and launches are used rightly: every array that a kernel gets has the shape and
the strides it says, and the results come back to where they belong. What it cannot show is what a GPU computes.
NUMBA_CUDA_DRIVER names the library that `build` makes.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from gguf_mla import codec, ggtypes

MEMORY = 160 << 20
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int)
ACTIONS = "special|spread|encode_weighted|encode|decode_block|decode_value"
KERNEL = re.compile(rf"12cuda_kernels\d+(?:([A-Z]+\d\w*?)_)?({ACTIONS})")


class Arguments:
    """The arguments of a launch: for each array seven numbers and more, as numba lays them out."""

    def __init__(self, pointers: Any) -> None:
        self._pointers, self._at = pointers, 0

    def array(self, dtype: Any, ndim: int) -> np.ndarray:
        """The next array, over the memory it is in."""
        ends = range(self._at, self._at + 5 + 2 * ndim)
        _, _, count, size, data, *rest = (ctypes.c_ssize_t.from_address(self._pointers[at]).value for at in ends)
        self._at = ends.stop
        shape, strides = tuple(rest[:ndim]), tuple(rest[ndim:])
        memory = (ctypes.c_uint8 * (math.prod(shape) * size)).from_address(data)
        found: np.ndarray = np.frombuffer(memory, dtype).reshape(shape)
        assert (found.size, found.itemsize, found.strides) == (count, size, strides)
        return found

    def tables(self, tensor_type: ggtypes.TensorType) -> None:
        """The next arrays are a type's codebooks."""
        for table in tensor_type.tables():
            assert np.array_equal(self.array(table.dtype, table.ndim), table)


def mean_squares(values: np.ndarray) -> np.ndarray:
    return np.cumsum(values * values, axis=1, dtype=np.float32)[:, -1] / np.float32(values.shape[1])


def encode_weighted(arguments: Arguments, tensor_type: ggtypes.TensorType) -> int:
    source, importance = arguments.array(np.float32, 2), arguments.array(np.float32, 2)
    spread = arguments.array(np.float32, 1)
    arguments.tables(tensor_type)
    out = arguments.array(np.uint8, 2)
    rows = source.reshape(-1, importance.size)
    assert not tensor_type.row_spread or np.array_equal(spread, mean_squares(rows))
    encoded = codec.encode(rows, tensor_type.name, importance=importance.reshape(-1).copy(), check=False)
    out[:] = encoded.reshape(out.shape)
    return len(out)


def encode(arguments: Arguments, tensor_type: ggtypes.TensorType) -> int:
    source = arguments.array(np.float32, 2)
    arguments.tables(tensor_type)
    out = arguments.array(np.uint8, 2)
    out[:] = codec.encode(source, tensor_type.name, check=False)
    return len(out)


def decode_block(arguments: Arguments, tensor_type: ggtypes.TensorType) -> int:
    data = arguments.array(np.uint8, 2)
    arguments.tables(tensor_type)
    arguments.array(np.float32, 2)[:] = codec.decode(data, tensor_type.name)
    return len(data)


def decode_value(arguments: Arguments, tensor_type: ggtypes.TensorType) -> int:
    data, out = arguments.array(np.uint8, 1), arguments.array(np.float32, 1)
    out[:] = codec.decode(data[np.newaxis], tensor_type.name)[0]
    return out.size


def spread(arguments: Arguments, _kind: None) -> int:
    values, out = arguments.array(np.float32, 2), arguments.array(np.float32, 1)
    out[:] = mean_squares(values)
    return out.size


def special(arguments: Arguments, _kind: None) -> int:
    values, found = arguments.array(np.float32, 1), arguments.array(np.int32, 1)
    found[0] |= not np.isfinite(values).all()
    return values.size


RUN: dict[str, Any] = {
    function.__name__: function for function in (encode_weighted, encode, decode_block, decode_value, spread, special)
}
launched: set[str] = set()
devices: set[int] = set()
failures: list[BaseException] = []


@CALLBACK
def launch(name: bytes, threads: int, pointers: Any, device: int) -> None:
    """Compute what a kernel would; what goes wrong is kept, because the caller is C."""
    try:
        found = KERNEL.search(name.decode())
        assert found, name
        tensor_type, action = found.groups()
        assert threads >= RUN[action](Arguments(pointers), ggtypes.by_name(tensor_type) if tensor_type else None)
        launched.add(found.group())
        devices.add(device)
    except BaseException as error:  # nothing may cross the C code
        failures.append(error)


def build(directory: Path) -> Path | None:
    """Compile the stand-in; None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = directory / "libcuda_standin.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", "-pthread", "-o", library, source], check=True)
    return library


def pytest_configure() -> None:
    """Begin, where the plugin was asked for."""
    library = ctypes.CDLL(os.environ["NUMBA_CUDA_DRIVER"])
    library.stub_begin(launch, ctypes.c_long(MEMORY))


def pytest_unconfigure() -> None:
    """A kernel that got wrong arguments fails the run; so does a run that spared a device."""
    assert not failures, failures
    assert devices == {0, 1}
    assert launched
