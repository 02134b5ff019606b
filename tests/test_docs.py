"""The pages name files, functions and each other; all of these are there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.hub import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

PAGES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
PACKAGES = "gguf_mla|convert|quantize|verify|tests|docs|benchmarks"
STEP = re.compile(r"^\| \w* ?\| `([\w/]+\.py)`, `(\w+)` \|", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    files = re.findall(rf"`((?:{PACKAGES})/[\w/.-]*)`", text)
    links = re.findall(r"\]\(([\w./-]+)\)", text)
    modules = [name.replace(".", "/") for name in re.findall(r"`(gguf_mla(?:\.[a-z_]+)+)`", text)]
    for name in files:
        assert (REPOSITORY / name).exists(), name
    for link in links:
        assert (page.parent / link).exists(), link
    functions = {"gguf_mla/quantize", "gguf_mla/dequantize"}
    for module in set(modules) - functions:
        assert (REPOSITORY / module).is_dir() or (REPOSITORY / f"{module}.py").is_file(), module


def test_every_step_of_the_flow_is_a_function_of_its_file() -> None:
    steps = STEP.findall((REPOSITORY / "docs" / "flow.md").read_text(encoding="utf-8"))
    assert len(steps) >= 19
    for file, name in steps:
        assert re.search(rf"^(def|class) {name}\b", (REPOSITORY / file).read_text(encoding="utf-8"), re.MULTILINE), (
            file,
            name,
        )


def test_the_index_lists_every_page() -> None:
    docs = REPOSITORY / "docs"
    listed = set(re.findall(r"\]\(([\w./-]+)\)", (docs / "README.md").read_text(encoding="utf-8")))
    pages = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")} - {"README.md"}
    assert pages <= listed
