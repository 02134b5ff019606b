"""`gguf-mla demo` does the main job, and llama.cpp understands what comes out."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from gguf_mla.container.reader import open_gguf

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.engine
def test_the_demo_converts_and_generates(tmp_path: Path, judges: None) -> None:  # noqa: ARG001 - says when they are missing
    done = subprocess.run(
        [sys.executable, "-m", "gguf_mla", "demo", str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert [open_gguf(path).metadata["general.file_type"] for path in sorted((tmp_path / "out").iterdir())] == [32, 7]
    # A trained model continues Python with Python: both files go on inside the method that the prompt begins.
    continuations = done.stdout.split("llama.cpp, ")[1:]
    assert len(continuations) == 2
    assert all("self." in text.split("\n", 3)[2] and "=" in text for text in continuations)
