"""The library's notebook runs from its first cell to its last, and shows what is stored in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import notebook

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_every_cell_shows_what_is_stored(tmp_path: Path) -> None:
    assert notebook.shown(notebook.ran(tmp_path)) == notebook.shown(notebook.stored())
    assert (tmp_path / "tiny-Q4_K_M.gguf").is_file()
