"""Binding a formula to lanes: variants keep apart, helpers are shared, kernels come back from disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.codec import feed, kernel_cache
from gguf_mla.ggtypes.shared import affine
from gguf_mla.ggtypes.shared.grid import fit_grid, fit_iq3_s, fit_iq3_xxs
from gguf_mla.lanes import plain
from gguf_mla.lanes.binding import REFUSED, Binder, unbound, variant

if TYPE_CHECKING:
    from pathlib import Path


RATE = unbound("RATE")


def scaled(x: float) -> float:
    return x * RATE


def rule() -> str:
    return "first"


def helper() -> str:
    return f"{rule()} rule"


def formula() -> str:
    return f"by the {helper()}"


def test_a_variant_reaches_the_helpers_of_its_module() -> None:
    def second() -> str:
        return "second"

    assert formula() == "by the first rule"
    assert variant(formula, rule=second)() == "by the second rule"
    assert formula() == "by the first rule"


def test_variants_have_names_of_their_own() -> None:
    names = {function.__qualname__ for function in (fit_grid, fit_iq3_s, fit_iq3_xxs, affine.fit, affine.fit_exact)}
    assert len(names) == 5


def test_a_name_without_a_value_is_noticed() -> None:
    for compute in (lambda: scaled(2.0), lambda: RATE == 8, lambda: range(RATE), lambda: RATE(1), lambda: bool(RATE)):
        with pytest.raises(TypeError, match="RATE has no value yet"):
            compute()
    for operation in REFUSED:
        with pytest.raises(TypeError, match="RATE has no value yet"):
            getattr(RATE, f"__{operation}__")(1)
    with pytest.raises(TypeError, match="RATE has no value yet"):
        Binder(plain, lambda function: function).rebind(scaled, {})
    assert repr(RATE) == "unbound('RATE')"


def test_a_name_is_given_a_value() -> None:
    assert variant(scaled, RATE=3)(2.0) == 6
    assert Binder(plain, lambda function: function).rebind(scaled, {"RATE": 3})(2.0) == 6


@pytest.mark.parametrize("feeder", [feed.encode_blocks, feed.encode_blocks_weighted, feed.decode_blocks])
def test_a_kernel_that_is_bound_over_nothing_is_noticed(feeder: Any) -> None:
    with pytest.raises(TypeError, match=r"(BLOCK|SCRATCH|BYTES|ROW_SPREAD|formula) has no value yet"):
        Binder(plain, lambda function: function).rebind(feeder, {})


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the files that kernels are compiled from."""
    for path in kernel_cache.sources():
        target = tmp_path / path.relative_to(kernel_cache.PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return tmp_path


def test_the_stamp_is_that_of_the_content(copied: Path) -> None:
    assert kernel_cache.stamp(copied) == kernel_cache.source_stamp()
    (copied / "codec" / "feed.py").touch()
    (copied / "unrelated.py").touch()
    assert kernel_cache.stamp(copied) == kernel_cache.source_stamp()


@pytest.mark.parametrize("name", ["codec/feed.py", "lanes/cpu.py", "ggtypes/q4_0.py", "ggtypes/shared/grid.py"])
def test_a_changed_file_changes_the_stamp_whatever_its_size_and_time(name: str, copied: Path) -> None:
    path, before = copied / name, kernel_cache.stamp(copied)
    state, content = path.stat(), path.read_bytes()
    path.write_bytes(content.replace(b"0", b"1", 1))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    assert kernel_cache.stamp(copied) != before


@pytest.mark.parametrize("folder", ["ggtypes/shared/new", "lanes/new", "codec/new"])
def test_an_added_folder_changes_the_stamp(folder: str, copied: Path) -> None:
    before = kernel_cache.stamp(copied)
    (copied / folder).mkdir()
    (copied / folder / "search.py").write_text("")
    assert kernel_cache.stamp(copied) != before


def test_a_version_changes_the_stamp(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kernel_cache.stamp(copied)
    monkeypatch.setattr(kernel_cache, "__version__", "another")
    assert kernel_cache.stamp(copied) != before


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
