"""Source formats are found by what they answer to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import PurePath
from typing import Any

import pytest

from gguf_mla.errors import InputError
from gguf_mla.sources.formats import format_of, formats, fp8_block, int4_pack, plain

FILE = PurePath("model/config.json")


@pytest.mark.parametrize(
    ("quantization", "module"),
    [
        ({}, plain),
        ({"quant_method": None}, plain),
        ({"quant_method": "fp8"}, fp8_block),
        ({"quant_method": "compressed-tensors"}, int4_pack),
    ],
)
def test_one_format_answers(quantization: dict[str, Any], module: Any) -> None:
    assert format_of(quantization, FILE) is module
    assert [found for found in formats() if found.answers(quantization)] == [module]


@pytest.mark.parametrize("quantization", [{"quant_method": "gptq"}, {"quant_method": ["fp8"]}, "fp8", [1]])
def test_what_no_format_reads_is_refused(quantization: Any) -> None:
    with pytest.raises(InputError, match=r"^model/config\.json: .*expected compressed-tensors, fp8, or no quant"):
        format_of(quantization, FILE)


def test_finding_a_format_imports_no_compiler() -> None:
    code = "import sys; from gguf_mla.sources import formats; formats.formats(); sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
