"""A real llama.cpp loads every file type of the bundled checkpoint and computes nearly what it does in float32."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla import ggtypes
from gguf_mla.container.reader import open_gguf
from gguf_mla.recipes import COPY, FILE_TYPES
from tests.support import hub
from tests.support.command import convert
from tests.support.judges import Engine, prompts
from tests.support.matrices import write_imatrix

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.engine

VOCABULARY = 2048
# KL divergence from the F32 file by bits per weight of the default type: about twice the largest measured. Random
# tokens are far from what the model knows, so these are larger than on text.
LIMITS = ((8.0, 0.001), (4.0, 0.12), (3.0, 0.5), (2.0, 1.5), (1.0, 2.5))
MEANT_FOR_TRAINING = {"TQ1_0", "TQ2_0", "Q1_0", "Q2_0"}  # of a model not trained in them they leave noise


@cache
def reference(path: Path) -> tuple[np.ndarray, ...]:
    return logprobs(Engine(path))


def logprobs(engine: Engine) -> tuple[np.ndarray, ...]:
    """Log-probabilities of all tokens after each prompt."""
    found = []
    for prompt in prompts(VOCABULARY, (21, 64)):
        tokens, values = engine.next_logprobs(prompt, VOCABULARY)
        ordered = np.empty(VOCABULARY)
        ordered[tokens] = values
        found.append(ordered)
    return tuple(found)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an F32 file and an importance matrix that knows all tensors."""
    directory = tmp_path_factory.mktemp("engine")
    convert(hub.BUNDLED, directory / "F32.gguf", "F32")
    entries = {}
    for tensor in open_gguf(directory / "F32.gguf").tensors.values():
        rows = int(np.prod(tensor.shape[:-2]))
        entries[tensor.name] = np.ones((rows, tensor.shape[-1]), np.float32), np.full(rows, 8, np.float32)
    write_imatrix(directory / "matrix.gguf", entries, datasets=["ones"], chunk_count=1, chunk_size=512)
    return directory


@pytest.mark.parametrize("name", [entry.name for entry in FILE_TYPES.values() if entry is not COPY])
def test_every_file_type_runs(name: str, files: Path, engine: Callable[[Path], Engine], tmp_path: Path) -> None:
    convert(hub.BUNDLED, tmp_path / "model.gguf", name, "--imatrix", files / "matrix.gguf")
    found = logprobs(engine(tmp_path / "model.gguf"))
    pairs = zip(reference(files / "F32.gguf"), found, strict=True)
    divergence = np.mean([np.sum(np.exp(p) * (p - q)) for p, q in pairs])
    kind = ggtypes.by_name(FILE_TYPES[name].default)
    limit = next(limit for bits, limit in LIMITS if kind.bytes * 8 >= bits * kind.block)
    assert 0 <= divergence <= limit or name in MEANT_FOR_TRAINING
