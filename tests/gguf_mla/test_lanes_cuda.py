"""The CUDA kernels: the CPU's bytes in numba's simulator, and machine code that fuses nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from gguf_mla import codec
from gguf_mla.errors import MachineError

SIMULATED = """
import warnings
from pathlib import Path
import numpy as np
from gguf_mla import codec, ggtypes
warnings.simplefilter("ignore")
np.seterr(all="ignore")
golden = Path({golden!r})
inputs = dict(np.load(golden / "inputs.npz"))
for name, kind in ggtypes.types().items():
    if name == "F32":
        continue
    recorded = np.load(golden / f"{{name.lower()}}.npz")
    cols = 512 if kind.row_spread else max(kind.block, 32)
    for key in ("heavy", "heavy+imp", "sparse+imp"):
        if key in recorded:
            x = np.ascontiguousarray(inputs[key.removesuffix("+imp")][1:2, :cols])
            importance = np.ascontiguousarray(inputs["importance"][:cols]) if "+" in key else None
            data = codec.quantize(x, name, importance, device="cuda")
            assert np.array_equal(data, recorded[key][1:2, : data.shape[1]]), (name, key)
            values = codec.dequantize(data, name, device="cuda")
            assert np.array_equal(values.view("u4"), codec.decode(data, name).view("u4")), (name, key)
"""

COMPILED = """
import re
from types import SimpleNamespace
import numba
from numba import cuda, float32, types, uint8
from numba.cuda import dispatcher
from gguf_mla import ggtypes
from gguf_mla.lanes import cuda as kernels
dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(9, 0))
flat, values, blocks = (types.Array(kind, n, "C") for kind, n in ((float32, 1), (float32, 2), (uint8, 2)))
for kind in ggtypes.types().values():
    if kind.block == 1:
        continue
    tables = types.BaseTuple.from_types(tuple(numba.typeof(table) for table in kind.tables()))
    signatures = {
        "encode": (values, tables, blocks),
        "encode_weighted": (values, values, flat, tables, blocks),
        "decode_block": (blocks, tables, values),
    }
    for name, signature in signatures.items():
        if hasattr(kind.module, name):
            ptx, _ = cuda.compile_ptx(kernels.function(kind, name), signature, cc=(9, 0))
            assert not re.search(r"\\bfma\\b", ptx), (kind.name, name)
"""


def run(program: str, **environment: str) -> None:
    subprocess.run([sys.executable, "-c", program], env={**os.environ, **environment}, check=True)


def nvvm() -> bool:
    from numba.cuda.cudadrv.nvvm import NVVM, NvvmSupportError

    try:
        return bool(NVVM().get_version())
    except NvvmSupportError:
        return False


def test_the_simulator_gives_the_golden_bytes(pytestconfig: pytest.Config) -> None:
    run(SIMULATED.format(golden=str(pytestconfig.rootpath / "tests" / "golden")), NUMBA_ENABLE_CUDASIM="1")


@pytest.mark.skipif(not nvvm(), reason="needs NVVM to compile for a GPU")
def test_nothing_is_fused() -> None:
    run(COMPILED)


def test_a_machine_without_gpu_says_so() -> None:
    from numba import cuda

    if cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(MachineError, match=r"no CUDA device can be used here.*--device cpu"):
        codec.quantize(np.ones((2, 256), np.float32), "Q4_K", device="cuda")
