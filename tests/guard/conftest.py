"""The directory in which the guard is tried."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support import crash, guard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def made(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of `guard.fill`; to be linked, not changed."""
    directory = tmp_path_factory.mktemp("made")
    guard.fill(directory, pristine)
    return directory


@pytest.fixture(autouse=True)
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with all of them, which is the current one; who changes one does it to a copy."""
    directory = tmp_path / "here"
    shutil.copytree(made, directory, copy_function=os.link)
    monkeypatch.chdir(directory)
    with crash.small_steps():
        yield directory
