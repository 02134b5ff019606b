"""Compile every CUDA kernel, some for several architectures, without a GPU, and say what the machine code is made of.

As a program it prints JSON: kernel → architecture → `ptx_facts` and, on the last one where there is a ptxas,
`spilled_bytes`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gguf_mla import ggtypes

if TYPE_CHECKING:
    from collections.abc import Iterator

ARCHITECTURES = ((8, 0), (9, 0))
ON_ALL = ("spread", "special", "Q8_0", "Q4_K", "IQ2_XXS", "NVFP4")  # compiled for the older one, too: a sample
INEXACT = r"\b(?:fma|mad)\.(?!lo|hi|wide)\S+|\S+\.(?:ftz|approx|full)\b\S*"  # mad.lo and its kin are integers'


def kernels() -> Iterator[tuple[str, Any, Any]]:
    """Name, kernel and argument types of every kernel."""
    import numba
    from numba import float32, int32, types, uint8

    from gguf_mla.codec import cuda_kernels
    from gguf_mla.codec.encoding import encodings

    arrays = ((float32, 1), (float32, 2), (uint8, 1), (uint8, 2))
    flat, values, raw, blocks = (types.Array(element, n, "C") for element, n in arrays)
    yield "spread", cuda_kernels.SPREAD, (values, flat)
    yield "special", cuda_kernels.SPECIAL, (flat, types.Array(int32, 1, "C"))
    for tensor_type in ggtypes.types().values():
        tables = types.BaseTuple.from_types(tuple(numba.typeof(table) for table in tensor_type.tables()))
        if tensor_type.block == 1:
            if tensor_type.bytes == 2:  # float32 is what the others are widened to
                yield f"{tensor_type.name} decode_value", cuda_kernels.decoder(tensor_type), (raw, flat)
            continue
        yield f"{tensor_type.name} decode_block", cuda_kernels.decoder(tensor_type), (blocks, tables, values)
        for encoding in encodings(tensor_type):
            weights = (values, flat) if encoding.weighted else ()
            arguments = (values, *weights, tables, blocks)
            yield f"{tensor_type.name} {encoding.formula}", cuda_kernels.encoder(encoding), arguments


def compiled(function: Any, arguments: Any) -> Any:
    """numba's own steps up to NVVM's input, which serves all architectures."""
    from numba import types
    from numba.cuda import compiler

    options = {"opt": 3, "fastmath": False}
    result = compiler.compile_cuda(function, types.void, arguments, nvvm_options=options, cc=ARCHITECTURES[-1])
    code = function.__code__
    library, _ = result.target_context.prepare_cuda_kernel(
        result.library, result.fndesc, False, False, options, code.co_filename, code.co_firstlineno
    )
    assert library.llvm_strs
    return library


def ptx_facts(ptx: str) -> dict[str, Any]:
    """Instructions that round otherwise than the CPU, and bytes of local memory, which is an array in a function."""
    return {
        "inexact": sorted(set(re.findall(INEXACT, ptx))),
        "local_bytes": sum(map(int, re.findall(r"\.local [^;]*__local_depot\d+\[(\d+)\]", ptx))),
        "exact": len(re.findall(r"\b(?:add|sub|mul|div)\.rn\.f32\b", ptx)),
    }


def facts(library: Any, architecture: tuple[int, int]) -> dict[str, Any]:
    """What is to be known of one kernel on one architecture."""
    ptx = library.get_asm_str(cc=architecture)
    assert f".target sm_{architecture[0]}{architecture[1]}" in ptx
    found = ptx_facts(ptx)
    if architecture == ARCHITECTURES[-1] and shutil.which("ptxas"):
        line = ["ptxas", "-v", f"-arch=sm_{architecture[0]}{architecture[1]}", "-o", "/dev/null", "-"]
        said = subprocess.run(line, input=ptx, text=True, capture_output=True, check=True).stderr
        found["spilled_bytes"] = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
        assert "bytes spill stores" in said
    return found


def main() -> None:
    """Compile on this thread, and let two more finish: NVVM and ptxas do not need the interpreter."""
    from numba.cuda import dispatcher

    from gguf_mla.codec import cuda_kernels

    # Compiling a helper asks which GPU there is.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=ARCHITECTURES[-1])
    with ThreadPoolExecutor(2) as pool:
        started = {}
        for name, kernel, arguments in kernels():
            library = compiled(cuda_kernels.function(kernel), arguments)
            wanted = ARCHITECTURES if name.split()[0] in ON_ALL else ARCHITECTURES[-1:]
            started[name] = {f"sm_{a}{b}": pool.submit(facts, library, (a, b)) for a, b in wanted}
        found = {name: {arch: future.result() for arch, future in each.items()} for name, each in started.items()}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
