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


def is_module(dotted: str) -> bool:
    """Whether it is a package or module, or something that one defines."""
    path = REPOSITORY / dotted.replace(".", "/")
    module = path.parent.with_suffix(".py")
    defining = module if module.is_file() else path.parent / "__init__.py"
    return path.is_dir() or path.with_suffix(".py").is_file() or path.name in defining.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    files = {name for name in re.findall(rf"`((?:{PACKAGES})/[\w/.-]*)`", text) if "NAME" not in name}
    links = set(re.findall(r"\]\(([\w./-]+)\)", text))
    modules = set(re.findall(r"`(gguf_mla(?:\.[a-z_]+)+)`", text))
    assert {name for name in files if not (REPOSITORY / name).exists()} == set()
    assert {link for link in links if not (page.parent / link).exists()} == set()
    assert {module for module in modules if not is_module(module)} == set()


def test_every_step_of_the_flow_is_a_function_of_its_file() -> None:
    steps = STEP.findall((REPOSITORY / "docs" / "flow.md").read_text(encoding="utf-8"))
    assert len(steps) >= 19
    for file, name in steps:
        content = (REPOSITORY / file).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name}\b", content, re.MULTILINE), f"{file}: {name}"


def test_the_index_lists_every_page() -> None:
    docs = REPOSITORY / "docs"
    listed = set(re.findall(r"\]\(([\w./-]+)\)", (docs / "README.md").read_text(encoding="utf-8")))
    pages = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")} - {"README.md"}
    assert pages <= listed
