"""The CUDA kernels without a GPU: the tests of the device in numba's simulator, and machine code that is read.

What the code of every kernel must be is checked for compute capability 9.0 (H100, H200), of some for 8.0 (A100), too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla import ggtypes
from gguf_mla.codec.encoding import encodings
from tests.support import cuda_driver, ptx
from tests.support.hub import REPOSITORY
from tests.support.nvvm import nvvm

if TYPE_CHECKING:
    from pathlib import Path

# Encoders that index an array of their own with a number known only when they run: it lies in local memory.
WITH_LOCAL_ARRAYS = {
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S",
    "IQ4_XS", "MXFP4", "NVFP4",
}  # fmt: skip
IN_A_PROCESS = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
KERNELS = 2 + sum(
    len(encodings(tensor_type)) + 1 if tensor_type.block > 1 else 1
    for tensor_type in ggtypes.types().values()
    if tensor_type.bytes != 4 or tensor_type.block > 1
)


without_nvvm = pytest.mark.skipif(not nvvm(), reason="there is no NVVM (of a CUDA toolkit) to compile kernels with")


@pytest.fixture(scope="module")
def facts() -> dict[str, dict[str, dict[str, Any]]]:
    """Kernel → architecture → what its code is made of."""
    line = [sys.executable, "-m", "tests.support.ptx"]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(done.stdout)
    assert len(found) == KERNELS
    assert all(
        list(each) == (["sm_80", "sm_90"] if name.split()[0] in ptx.ON_ALL else ["sm_90"])
        for name, each in found.items()
    )
    return found


@pytest.mark.cuda
def test_the_tests_of_the_device_pass_in_the_simulator() -> None:
    simulated = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    line = [*IN_A_PROCESS, "tests/gpu"]
    done = subprocess.run(line, cwd=REPOSITORY, env=simulated, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"\d+ passed in .*", done.stdout.splitlines()[-1])


@pytest.mark.cuda
@without_nvvm
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler for a stand-in of the CUDA driver")
def test_the_tests_of_the_device_pass_over_a_stand_in_for_the_driver(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "pytest", "-p", "tests.support.cuda_driver", *IN_A_PROCESS[3:]]
    over_it = os.environ | {"NUMBA_CUDA_DRIVER": str(cuda_driver.build(tmp_path)), "NUMBA_CACHE_DIR": str(tmp_path)}
    # Known rows would compile every kernel; what the stand-in has the CPU compute is rows, neither attention
    # nor anything that torch has on a device.
    tests = ["tests/gpu/test_device.py", "-k", "not known_rows and not attends and not torchs_memory"]
    done = subprocess.run([*line, *tests], cwd=REPOSITORY, env=over_it, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"\d+ passed, 6 deselected in .*", done.stdout.splitlines()[-1])
    assert done.stderr == ""


@pytest.mark.cuda
@without_nvvm
def test_every_operation_is_rounded_on_its_own(facts: dict[str, dict[str, dict[str, Any]]]) -> None:
    for name, by_architecture in facts.items():
        for architecture, found in by_architecture.items():
            assert found["inexact"] == [], (name, architecture)
            assert found["exact"] > 0 or "encode" not in name, (name, architecture)


@pytest.mark.cuda
@without_nvvm
def test_only_known_encoders_have_local_memory_and_only_their_scratch(
    facts: dict[str, dict[str, dict[str, Any]]],
) -> None:
    with_arrays = set()
    for name, by_architecture in facts.items():
        type_name, _, action = name.partition(" ")
        sizes = {found["local_bytes"] for found in by_architecture.values()}
        if sizes != {0}:
            assert action.startswith("encode"), name
            assert sizes == {4 * ggtypes.by_name(type_name).scratch}, name
            with_arrays.add(type_name)
    assert with_arrays == WITH_LOCAL_ARRAYS


@pytest.mark.cuda
@without_nvvm
@pytest.mark.skipif(shutil.which("ptxas") is None, reason="there is no ptxas (of a CUDA toolkit) to count registers")
def test_no_register_is_spilled(facts: dict[str, dict[str, dict[str, Any]]]) -> None:
    assert {name: found["sm_90"]["spilled_bytes"] for name, found in facts.items()} == dict.fromkeys(facts, 0)


@pytest.mark.parametrize(
    "instruction",
    ["fma.rn.f32", "mad.rn.f32", "add.ftz.f32", "add.rn.ftz.f32", "div.approx.f32", "div.full.f32", "sqrt.approx.f32"],
)
def test_an_instruction_that_rounds_otherwise_is_noticed(instruction: str) -> None:
    text = f"mad.lo.s32 %r1, %r2, %r3, %r4;\n{instruction} %f1, %f2, %f3;\nadd.rn.f32 %f1, %f2, %f3;"
    assert ptx.ptx_facts(text)["inexact"] == [instruction]


def test_local_memory_is_noticed() -> None:
    text = ".local .align 16 .b8 \t__local_depot0[1728];\n.local .align 4 .b8 __local_depot1[4];"
    assert ptx.ptx_facts(text)["local_bytes"] == 1732
