"""Dependencies run one way: convert, quantize and verify use gguf_mla and never each other; imports stay cheap."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.command import environment
from tests.support.hub import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JOBS = {"convert", "quantize", "verify"}
PACKAGES = JOBS | {"gguf_mla"}
MAY_IMPORT = {"gguf_mla": {"gguf_mla"}, **{job: {job, "gguf_mla"} for job in JOBS}}
HEAVY = {"torch", "numba", "transformers", "safetensors"}
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


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    own = path.relative_to(REPOSITORY).parts[0]
    found = set(imported(ast.parse(path.read_text(encoding="utf-8"))))
    assert found & PACKAGES <= MAY_IMPORT[own]
    assert "tests" not in found


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
