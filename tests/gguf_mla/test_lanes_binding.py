"""Binding a text to lanes: variants keep apart, helpers are shared, kernels come back from disk."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from gguf_mla.ggtypes.shared import affine
from gguf_mla.ggtypes.shared.grid import fit_grid, fit_iq3_s, fit_iq3_xxs
from gguf_mla.lanes import plain
from gguf_mla.lanes.binding import Binder, variant

if TYPE_CHECKING:
    from pathlib import Path


def rule() -> str:
    return "first"


def helper() -> str:
    return f"{rule()} rule"


def text() -> str:
    return f"by the {helper()}"


def test_a_variant_reaches_the_helpers_of_its_module() -> None:
    def second() -> str:
        return "second"

    assert text() == "by the first rule"
    assert variant(text, rule=second)() == "by the second rule"
    assert text() == "by the first rule"


def test_variants_have_names_of_their_own() -> None:
    names = {function.__qualname__ for function in (fit_grid, fit_iq3_s, fit_iq3_xxs, affine.fit, affine.fit_exact)}
    assert len(names) == 5


def test_a_helper_is_compiled_once() -> None:
    compiled: list[Any] = []

    def compile_function(function: Any) -> Any:
        compiled.append(function)
        return function

    binder = Binder(plain, compile_function)
    assert binder.helper(affine.fit) is binder.helper(affine.fit)
    assert len(compiled) == len({function.__qualname__ for function in compiled})
    assert compiled[-1].__globals__["lanes"] is plain


def test_kernels_come_back_from_disk(tmp_path: Path) -> None:
    program = (
        "import numpy as np; from gguf_mla import codec; print(codec.encode(np.ones((1, 64), 'f4'), 'Q8_0').sum())"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_DEBUG_CACHE": "1"}
    command = [sys.executable, "-c", program]

    def said() -> tuple[list[str], str]:
        """What numba did with its cache, and the answer."""
        done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
        *lines, answer = done.stdout.splitlines()
        return [verb for line in lines for verb in ("data saved", "data loaded") if verb in line], answer

    first, expected = said()
    stored = sorted(path.name for path in tmp_path.rglob("*.nbc"))
    second, answer = said()
    assert answer == expected
    assert (first, second) == (["data saved"], ["data loaded"])
    assert len(stored) == 1
    assert stored == sorted(path.name for path in tmp_path.rglob("*.nbc"))
