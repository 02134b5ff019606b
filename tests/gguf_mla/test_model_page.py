"""The page of a model: areas are bytes, nothing is loaded, and what a file says is escaped."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from gguf_mla.cli.treemap import Box, squarified
from gguf_mla.container.values import string, u32
from gguf_mla.container.writer import TensorSpec, lay_out
from tests.support.command import gguf_mla
from tests.support.html import Page

if TYPE_CHECKING:
    from pathlib import Path

NASTY = "<script>alert(1)</script>"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    metadata = {"general.architecture": string("deepseek2"), "general.name": string(NASTY)}
    metadata["deepseek2.block_count"] = u32(2)
    tensors = [
        TensorSpec("token_embd.weight", (512, 256), "Q8_0"),
        *(TensorSpec(f"blk.{layer}.ffn_up.weight", (256, 256), "Q4_K") for layer in range(2)),
        TensorSpec("blk.1.ffn_norm.weight", (256,), "F32"),
    ]
    layout = lay_out(metadata, tensors)
    path = tmp_path / "x.gguf"
    path.write_bytes(layout.head.ljust(layout.size, b"\0"))
    return path


def test_areas_are_weights_and_nothing_overlaps() -> None:
    weights = [60.0, 25.0, 10.0, 3.0, 1.0, 1.0]
    boxes = squarified(weights, Box(0, 0, 200, 100))
    assert [box.width * box.height / 200 for box in boxes] == pytest.approx(weights)
    for i, a in enumerate(boxes):
        assert a.x >= -1e-9
        assert a.y >= -1e-9
        assert a.x + a.width <= 200 + 1e-9
        assert a.y + a.height <= 100 + 1e-9
        for b in boxes[:i]:
            across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
            down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
            assert across < 1e-6 or down < 1e-6
    assert max(max(box.width / box.height, box.height / box.width) for box in boxes) < 4  # strips would be 100


def test_the_page_shows_every_tensor_and_loads_nothing(file: Path, tmp_path: Path) -> None:
    answer = gguf_mla("inspect", file, "--html", tmp_path / "page.html")
    assert answer.status == 0, answer.output
    written = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(written)
    assert page.open == page.loaded == []
    assert NASTY not in written
    titles = re.findall(r"<title>([^<]*: [^<]*)</title>", written)
    assert len(titles) == 4
    assert "token_embd.weight: Q8_0, 512x256, 136.00 KiB" in titles
    assert "layer 1" in written


def test_types_of_the_same_bits_can_be_told_apart(tmp_path: Path) -> None:
    kinds = ("Q5_0", "Q5_K", "Q4_K", "Q4_0", "IQ4_NL")
    layout = lay_out({}, [TensorSpec(f"blk.{i}.ffn_up.weight", (256, 256), kind) for i, kind in enumerate(kinds)])
    (tmp_path / "x.gguf").write_bytes(layout.head.ljust(layout.size, b"\0"))
    assert gguf_mla("inspect", tmp_path / "x.gguf", "--html", tmp_path / "page.html").status == 0
    shown = re.findall(r'"background:(hsl[^"]*)"', (tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(set(shown)) == len(shown) == len(kinds)


def test_a_page_replaces_a_page_and_nothing_else(file: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for _ in range(2):
        assert gguf_mla("inspect", file, "--html", page).status == 0
    killed = page.with_name(f"{page.name}.partial")
    shutil.copyfile(page, killed)
    assert gguf_mla("inspect", file, "--html", page).status == 0
    assert not killed.exists()
    for path in (page, killed):
        path.write_text("precious")
        answer = gguf_mla("inspect", file, "--html", page)
        assert (answer.status, "--overwrite" in answer.output) == (2, False)
        assert path.read_text() == "precious"
        path.unlink()
    assert gguf_mla("inspect", file, "--html", file, "--json").status == 2
