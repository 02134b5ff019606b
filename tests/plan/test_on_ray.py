"""Ray keeps the contract, on three raylets of this machine: what dies is replaced, and what was done is kept.

Its start is paid once, for all tests of this file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.cli import distributed
from gguf_mla.stream import on_ray
from quantize.imatrix import on_cluster
from tests.plan.contract import Contract, ok, words
from tests.plan.matrix import Matrix
from tests.support import crash
from tests.support.command import Answer, environment, gguf_mla

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.support.crash import Job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::Warning:ray.*"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
# A dead raylet is noticed after a second, not after twenty.
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
JOB_BYTES = 300_000
SMALL = ("--engine", "ray", "--threads", "1", "--quiet")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and two more raylets, of one processor each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20, "_system_config": QUICK}
    found = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        found.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture(autouse=True)
def small_jobs(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 - everything here needs it
    """Jobs of 300 kB: a plan says how large they are, so that the workers need not be told."""
    from gguf_mla.stream.sharing import plan

    monkeypatch.setattr(plan, "job_bytes", lambda _: JOB_BYTES)
    monkeypatch.setattr(on_ray, "LEAST_SECONDS", 0.0)


def run(job: Job, out: Path) -> Answer:
    return gguf_mla(*words(job, out), *SMALL)


class TestRay(Contract):
    """The command with --engine ray."""

    def run(self, job: Job, out: Path, scratch: Path) -> Answer:  # noqa: ARG002 - other drivers need it
        return run(job, out)


def noted(out: Path) -> int:
    return len(list(out.glob("*.work/0*.json")))


def when_noted(count: int, out: Path, task: Callable[[], object]) -> threading.Thread:
    """Do something once so many jobs are noted."""

    def wait() -> None:
        while noted(out) < count:
            time.sleep(0.02)
        task()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def slowly(plan: str, jobs: Sequence[int], threads: int, device: str) -> None:
    import time

    from gguf_mla.cli.distributed import share_of

    for job in jobs:
        time.sleep(0.1)
        share_of(plan, [job], threads, device)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs take a tenth of a second at least, so that a run has a middle."""
    monkeypatch.setattr(distributed, "share_of", by_value(slowly))


def by_value(task: Callable[..., None]) -> Callable[..., None]:
    """Return a function as one that workers need not be able to import."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return task


@pytest.mark.usefixtures("slow")
def test_a_raylet_is_killed_in_mid_run(
    cluster: Any, jobs: dict[str, Job], undisturbed: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    cluster.wait_for_nodes()
    killer = when_noted(3, tmp_path, lambda: cluster.remove_node(node, allow_graceful=False))
    ok(run(jobs["convert"], tmp_path))
    killer.join()
    assert crash.content(tmp_path) == undisturbed["convert"]


def deadly(plan: str, jobs: Sequence[int], threads: int, device: str) -> None:
    import os
    import signal

    from gguf_mla.cli.distributed import share_of

    if 3 in jobs:
        os.kill(os.getpid(), signal.SIGKILL)
    share_of(plan, jobs, threads, device)


def test_a_job_that_kills_its_worker_each_time_ends_with_a_sentence(
    jobs: dict[str, Job],
    undisturbed: dict[str, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "share_of", by_value(deadly))
        answer = run(jobs["convert"], tmp_path)
    assert answer.status == 3, answer.output
    assert f"job 3 was not done: {on_ray.DEATHS} workers have died of it" in answer.output
    assert noted(tmp_path) >= 1
    ok(run(jobs["convert"], tmp_path))
    assert crash.content(tmp_path) == undisturbed["convert"]


DRIVER = f"""
import sys
from gguf_mla.cli.main import main
from gguf_mla.stream import on_ray
from gguf_mla.stream.sharing import plan
plan.job_bytes = lambda _: {JOB_BYTES}
on_ray.LEAST_SECONDS = 0.0
main(sys.argv[1:])
"""


def test_the_driver_is_killed_and_run_again(
    cluster: Any, jobs: dict[str, Job], undisturbed: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """The second run finds what the first has noted, and does the rest."""
    line = [*words(jobs["convert"], tmp_path), *SMALL, "--address", cluster.address]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *line], env=environment(), stderr=subprocess.DEVNULL)
    when_noted(1, tmp_path, lambda: os.kill(driver.pid, signal.SIGKILL)).join(60)
    assert driver.wait() in (-signal.SIGKILL, 0)
    if not (tmp_path / "out.gguf").exists():
        ok(run(jobs["convert"], tmp_path))
    assert crash.content(tmp_path) == undisturbed["convert"]


@pytest.mark.usefixtures("slow")
def test_an_interrupt_says_what_is_done(jobs: dict[str, Job], tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests ignores
    try:
        when_noted(2, tmp_path, lambda: os.kill(os.getpid(), signal.SIGINT))
        answer = run(jobs["convert"], tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert answer.status == 130, answer.output
    assert "are on the disk. Run the same command again to go on from there." in answer.output


def deadly_file(plan: str, numbers: Sequence[int], threads: int, device: str) -> None:
    import json
    import os
    import signal
    from pathlib import Path

    from gguf_mla.cli.distributed import files_of

    flag = Path(json.loads(plan)["outputs"][0]["path"]).parent.with_name("flag")
    if numbers[0] == 1 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    files_of(plan, numbers, threads, device)


def test_files_are_sent_where_no_folder_is_shared(
    jobs: dict[str, Job], undisturbed: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker dies before it has sent anything; the next run finds the model complete."""
    monkeypatch.setattr(distributed, "files_of", by_value(deadly_file))
    (out := tmp_path / "out").mkdir()
    line = [*words(jobs["split"], out), *SMALL, "--upload", f"file://{tmp_path / 'store'}"]
    ok(gguf_mla(*line))
    assert (tmp_path / "flag").exists()
    found = {name: content for name, content in crash.content(tmp_path / "store").items() if name.endswith(".gguf")}
    assert found == {name: content for name, content in undisturbed["split"].items() if name.endswith(".gguf")}
    assert len(list((tmp_path / "store").iterdir())) == len(found) + 2
    assert list(out.iterdir()) == []
    assert "is there already" in gguf_mla(*line).output


def telling(plan: str, jobs: Sequence[int], threads: int, device: str) -> Iterator[tuple[int, float]]:
    for job in jobs:
        for share in (0.5, 1.0):
            yield job, share * len(plan) * threads
    assert device == "cpu"


def test_a_task_tells_how_far_it_is() -> None:
    heard: dict[int, list[float]] = {0: [], 1: []}
    done: list[int] = []
    jobs = [on_cluster.Share(0), on_cluster.Share(1)]
    needs = on_ray.Needs(1, 1 << 20)
    on_ray.run(
        by_value(telling),
        "four",
        jobs,
        needs,
        lambda _: False,
        done.extend,
        lambda number, at: heard[number].append(at),
    )
    assert (sorted(done), heard) == ([0, 1], {0: [2.0, 4.0], 1: [2.0, 4.0]})


@pytest.fixture
def matrix(small_model: Path, tmp_path: Path) -> Matrix:
    return Matrix(small_model, tmp_path)


def deadly_part(told: str, numbers: Sequence[int], threads: int, device: str) -> Iterator[tuple[int, float]]:
    import json
    import os
    import signal
    from pathlib import Path

    from quantize.imatrix import on_cluster

    flag = Path(json.loads(told)["out"]).parent.with_name("flag")
    for number, layers in on_cluster.part_of(told, numbers, threads, device):
        if number == 2 and layers >= 1 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield number, layers


@pytest.mark.thorough  # three processes load torch; test_matrix.py has the rest without a cluster
def test_a_worker_dies_in_the_middle_of_a_part(matrix: Matrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so does the driver, before the sum."""
    with monkeypatch.context() as patch:
        patch.setattr(on_cluster, "part_of", by_value(deadly_part))
        patch.setattr(on_cluster, "summed", None)
        assert matrix.run("--quiet").status != 0
    assert (tmp_path / "flag").exists()
    assert len(list(matrix.folder.glob("*-of-3.json"))) == 3
    matrix.check(matrix.run("--quiet"))
