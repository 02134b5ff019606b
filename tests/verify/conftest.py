"""Checkpoints and files with sparse attention and multi-token prediction, made once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support import hub
from tests.support.command import convert

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Shared

SPARSE_TYPES = ("F32", "Q8_0", "Q4_K_M")
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "n_routed_experts": 8, "tame": True}
SPARSE_KINDS: dict[str, dict[str, Any]] = {
    "v32": SMALL,
    "v32fp8": SMALL,
    "glm-dsa": SMALL | {"num_hidden_layers": 3, "indexer_types": ["full", "shared", "full"]},
    "glm-lite": SMALL,
}


@pytest.fixture(scope="session")
def sparse_files(shared: Shared) -> Path:
    """A directory with every kind's checkpoint, and its files as KIND-TYPE.gguf; all have a prediction layer."""
    return shared("sparse", write_sparse_files)


def write_sparse_files(directory: Path) -> None:
    for kind, options in SPARSE_KINDS.items():
        hub.write(directory / kind, kind, **options)
        more = [option for name in SPARSE_TYPES[1:] for option in ("--type", name)]
        convert(directory / kind, directory / f"{kind}-{{type}}.gguf", SPARSE_TYPES[0], *more)
