"""Dependencies run one way: convert, quantize and verify use gguf_mla and never each other; imports stay cheap."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

import gguf_mla
from tests.support import hub
from tests.support.command import environment
from tests.support.hub import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JOBS = {"convert", "quantize", "verify"}
PACKAGES = JOBS | {"gguf_mla"}
HEAVY = {"torch", "numba", "transformers", "safetensors"}
REASON = re.compile(r"# noqa: PLC0415(, \w+)?( -|  #) \w+")
FOR_HELP = HEAVY | {"gguf", "numpy", "xllamacpp", "tqdm"}


def modules() -> list[Path]:
    return [path for package in sorted(PACKAGES) for path in sorted((REPOSITORY / package).rglob("*.py"))]


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level packages that any import statement or importlib call with a literal in it names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module).split(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (str(a.value).split(".")[0] for a in node.args if isinstance(a, ast.Constant))


def test_all_packages_are_looked_at() -> None:
    assert {path.relative_to(REPOSITORY).parts[0] for path in modules()} >= {"convert", "gguf_mla"}


def test_the_rooms_are_in_order() -> None:
    """The contracts of pyproject.toml: layers, independence, and what the judge may not know."""
    assert lint_imports(config_filename=str(REPOSITORY / "pyproject.toml"), no_cache=True) == EXIT_STATUS_SUCCESS


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_nothing_imports_the_tests(path: Path) -> None:
    assert "tests" not in set(imported(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_an_import_inside_a_function_says_why(path: Path) -> None:
    """Commands load their work in one place, so only what is optional or slow to compile is left to import late."""
    text = path.read_text(encoding="utf-8")
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
    late = {
        node.lineno
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    lines = text.splitlines()
    assert [lines[number - 1] for number in late if not REASON.search(lines[number - 1])] == []


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after running `code`."""
    ending = (
        "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{ending}"],
        check=True,
        capture_output=True,
        text=True,
        env=environment(),
        cwd=REPOSITORY,
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_importing_the_library_loads_nothing_heavy() -> None:
    assert not loaded_by("import gguf_mla; dir(gguf_mla)") & (HEAVY | {"gguf", "numpy"})


def test_the_library_lists_what_it_loads() -> None:
    assert set(gguf_mla.__all__) <= set(dir(gguf_mla))
    assert all(callable(getattr(gguf_mla, name)) for name in gguf_mla.__all__)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        gguf_mla.quantise  # type: ignore[attr-defined]  # noqa: B018


FACE = """
from collections.abc import Mapping
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import gguf_mla
from gguf_mla.container.reader import GgufFile
from gguf_mla.ggtypes import TensorType
from gguf_mla.sources.checkpoint import Checkpoint

rows = np.zeros((2, 32), np.float32)
assert_type(gguf_mla.quantize(rows, "Q8_0"), np.ndarray[Any, Any])
assert_type(gguf_mla.dequantize(rows, "Q8_0"), np.ndarray[Any, Any])
assert_type(gguf_mla.open_gguf("a.gguf"), GgufFile)
assert_type(gguf_mla.open_checkpoint("a"), Checkpoint)
assert_type(gguf_mla.types(), Mapping[str, TensorType])
assert_type(gguf_mla.split_kv_b(rows, 1, 1), tuple[NDArray[Any], NDArray[Any]])
assert_type(gguf_mla.join_kv_b(rows, rows), NDArray[Any])
assert_type(gguf_mla.convert("a", "b.gguf", type=["Q8_0"], progress=print), dict[str, Any])
assert_type(gguf_mla.verify("a", "b.gguf"), dict[str, Any])
assert_type(gguf_mla.open_gguf("a.gguf")["t"].values(), NDArray[np.float32])
assert_type(gguf_mla.open_checkpoint("a")["t"].raw(), NDArray[np.uint8])
assert issubclass(gguf_mla.InputError, gguf_mla.GgufMlaError)
gguf_mla.quantise  # type: ignore[attr-defined]
"""


def test_type_checkers_know_the_library(tmp_path: Path) -> None:
    """Each call has its type, and an unused `ignore` would say that a name which does not exist passes."""
    (tmp_path / "snippet.py").write_text(FACE)
    line = [sys.executable, "-m", "mypy", "--strict", str(tmp_path / "snippet.py")]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import runpy, sys
sys.argv = ["gguf-mla", *{arguments}]
try:
    runpy.run_module("gguf_mla", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
"""
    assert not loaded_by(code) & FOR_HELP


@pytest.mark.parametrize("module", ["gguf_mla.sources.checkpoint", "gguf_mla.container.reader", "gguf_mla.families"])
def test_reading_needs_no_compiler(module: str) -> None:
    assert not loaded_by(f"import {module}") & HEAVY


WITHOUT_TORCH = f"""
import sys
sys.modules.update(torch=None, safetensors=None)
from click.testing import CliRunner
from gguf_mla.cli.main import main

def run(*line, status=0):
    answer = CliRunner().invoke(main, line)
    assert answer.exit_code == status, answer.output
    return answer.output

run("convert", {str(hub.BUNDLED)!r}, "a.gguf", "--type", "F16", "--quiet")
run("quantize", "a.gguf", "b.gguf", "Q8_0", "--quiet")
run("downgrade", "a.gguf", "c.gguf", "--quiet")
run("upgrade", "c.gguf", "d.gguf", "--quiet")
run("inspect", "d.gguf")
for command in (["verify", "no-such-checkpoint", "no-such-file"], ["bench", "attention"]):
    said = run(*command, status=2)
    assert "needs the package torch, which is not installed" in said, said
    assert "pip install torch" in said, said
"""


def test_what_writes_files_needs_no_torch(tmp_path: Path) -> None:
    """And what does says so in one sentence, before anything is read."""
    line = [sys.executable, "-c", WITHOUT_TORCH]
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
