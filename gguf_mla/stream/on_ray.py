"""The engine that has the jobs of a plan done on a Ray cluster: Ray places them, and starts them again elsewhere.

What a task does is what `gguf-mla work` does, and all that is done is noted in the ledger. So nothing is lost with a
worker, a machine or this driver: whatever is not noted is done again.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gguf_mla.errors import GgufMlaError, InputError, MachineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    # Called with a plan, the numbers of jobs, threads and device; what it yields is how far a job is: (number, amount).
    Task = Callable[[str, Sequence[int], int, str], Iterable[tuple[int, float]] | None]

DEATHS = 3  # of workers at one job, after which it is not tried again
CPU = "cpu"
POLL_SECONDS = 0.5
ROUNDS = 4  # a worker gets about this part of what is left for each worker, so that they end together
MOST = 64  # jobs at a time
LEAST_SECONDS = 2.0  # of work for each thread, by the plan's costs: going and coming back takes a part of a second
THREADS = 8  # of a worker, where its machine has so many cores
PARTS = ("what", "file", "tensor", "expected", "found", "remedy")


class Errand(Protocol):
    """What a worker can be sent for."""

    @property
    def number(self) -> int:
        """Which job of its plan."""

    @property
    def seconds(self) -> float:
        """About how long one thread takes."""


@dataclass(frozen=True)
class Needs:
    """What a worker takes of its machine: threads, bytes of memory, and the device that it computes on."""

    threads: int
    memory: int
    device: str = CPU

    @property
    def gpus(self) -> int:
        """How many GPUs."""
        return int(self.device != CPU)


@dataclass
class _Sent:
    """Some jobs that a worker was sent for, and the node where it has begun."""

    jobs: tuple[int, ...]
    node: str | None = None


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Be connected to a cluster, by default one of this machine alone; MachineError where it cannot be reached."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # noqa: PLC0415 - optional, and takes a second

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        what = f"the Ray cluster cannot be reached ({str(error).splitlines()[0]})"
        raise MachineError(what, found=address, remedy="Look at --address, or leave it out") from None
    try:
        yield
    finally:
        ray.shutdown()


def threads_of_a_worker(wanted: int | None) -> int:
    """Return how many threads a worker should have: what is wanted, or as many as any machine has, up to THREADS."""
    import ray  # noqa: PLC0415 - as above

    found = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return wanted or max(1, min([THREADS, *(cores for cores in found if cores)]))


def room(needs: Needs) -> int:
    """Return how many workers the cluster has room for, one at least."""
    import ray  # noqa: PLC0415 - as above

    resources = ray.cluster_resources()
    found = int(resources.get("CPU", 0)) // needs.threads
    return max(1, min(found, int(resources.get("GPU", 0)) // needs.gpus) if needs.gpus else found)


def run(
    task: Task,
    plan: str,
    jobs: Sequence[Errand],
    needs: Needs,
    is_noted: Callable[[int], bool],
    done: Callable[[Iterable[int]], object],
    reached: Callable[[int, float], object] = lambda _number, _amount: None,
) -> None:
    """Have jobs done; `task(plan, jobs, threads, device)` is called where Ray wants it.

    is_noted  whether there is a record of a job
    done      is told which jobs were done
    reached   is told how far a job is, where the task says so

    An error of ours that a task raises is raised here, and ends all others. A worker that dies, alone or with its
    machine, is replaced, on another one if there is one: MachineError when DEATHS have died of the same job.
    """
    driver = _Driver(task, plan, needs, reached)
    driver.send(jobs)
    try:
        while driver.is_busy:
            for errand, error in driver.ended():
                if error is None:
                    done(errand.jobs)
                    continue
                there = [job for job in errand.jobs if is_noted(job)]
                done(there)
                driver.send_again([job for job in errand.jobs if job not in there], errand.node, error)
    finally:
        driver.cancel()


class _Driver:
    """What was sent, what is waiting, and who has died of what."""

    def __init__(self, task: Task, plan: str, needs: Needs, reached: Callable[[int, float], object]) -> None:
        import ray  # noqa: PLC0415 - as above

        self._ray, self._plan, self._needs, self._reached = ray, plan, needs, reached
        resources: dict[str, Any] = {"num_cpus": needs.threads, "num_gpus": needs.gpus, "memory": needs.memory}
        self._remote = ray.remote(**resources, max_retries=0, num_returns="streaming")(_errand)
        self._task = ray.put(task)
        self._waiting: deque[Errand] = deque()
        self._again: deque[tuple[int, str | None]] = deque()
        self._sent: dict[Any, _Sent] = {}
        self._deaths: Counter[int] = Counter()

    @property
    def is_busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._waiting or self._again or self._sent)

    def send(self, jobs: Iterable[Errand]) -> None:
        """Have jobs done when there is a worker for them."""
        self._waiting.extend(jobs)

    def send_again(self, jobs: Sequence[int], node: str | None, error: BaseException) -> None:
        """Have jobs done by other workers, one at a time, so that it shows of which they die."""
        for job in jobs:
            self._deaths[job] += 1
            if self._deaths[job] >= DEATHS:
                raise MachineError(
                    f"job {job} was not done: {DEATHS} workers have died of it, or with their machines",
                    expected="an answer",
                    found=f"{type(error).__name__} {str(error).splitlines()[0]}",
                    remedy="Look at the memory of the machines; the same command goes on with what is left",
                )
            self._again.append((job, node))

    def ended(self) -> Iterator[tuple[_Sent, BaseException | None]]:
        """Send what there are workers for, wait a little, and yield who has come back, with what ended him."""
        self._fill()
        ready, _ = self._ray.wait([*self._sent], timeout=POLL_SECONDS, fetch_local=False)
        for stream in ready:
            errand = self._sent[stream]
            try:
                said = self._ray.get(next(stream))
            except self._ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except (self._ray.exceptions.RayError, StopIteration) as error:
                del self._sent[stream]
                yield errand, error
                continue
            if isinstance(said, str):
                errand.node = said
                continue
            if isinstance(said, tuple):
                self._reached(*said)
                continue
            del self._sent[stream]
            if said:
                raise _raised(said)
            yield errand, None

    def cancel(self) -> None:
        """End whatever is on its way."""
        for stream in self._sent:
            self._ray.cancel(stream, force=True)
        self._sent = {}

    def _fill(self) -> None:
        workers = room(self._needs)
        while self._again and len(self._sent) <= workers:
            job, node = self._again.popleft()
            self._send((job,), self._elsewhere(node))
        while self._waiting and len(self._sent) <= workers:
            self._send(tuple(self._next(workers)), None)

    def _next(self, workers: int) -> Iterator[int]:
        """Yield jobs for one worker: his part of what is left, and enough to be worth his way."""
        part, least = len(self._waiting) // (ROUNDS * workers), LEAST_SECONDS * self._needs.threads
        count, seconds = 0, 0.0
        while self._waiting and count < MOST and (count < max(1, part) or seconds < least):
            job = self._waiting.popleft()
            count, seconds = count + 1, seconds + job.seconds
            yield job.number

    def _send(self, jobs: tuple[int, ...], node: str | None) -> None:
        remote = self._remote
        if node is not None:
            strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=True)
            remote = remote.options(scheduling_strategy=strategy)
        self._sent[remote.remote(self._task, self._plan, jobs, self._needs)] = _Sent(jobs)

    def _elsewhere(self, node: str | None) -> str | None:
        """Return a node that is not this one and lives; None where there is none."""
        busy = Counter(errand.node for errand in self._sent.values())
        alive = [each["NodeID"] for each in self._ray.nodes() if each["Alive"] and each["Resources"].get("CPU")]
        return min((each for each in alive if each != node), key=lambda each: busy[each], default=None)


def _errand(
    task: Task, plan: str, jobs: Sequence[int], needs: Needs
) -> Iterator[str | tuple[int, float] | Mapping[str, Any]]:
    """Say where this is, do the jobs, and say what went wrong, as plain data: nothing where nothing did."""
    import ray  # noqa: PLC0415 - as above

    yield ray.get_runtime_context().get_node_id()
    try:
        yield from task(plan, jobs, needs.threads, needs.device) or ()
    except GgufMlaError as error:
        parts = {name: getattr(error, name, None) for name in PARTS}
        said = {name: None if part is None else str(part) for name, part in parts.items()}
        yield {"status": error.status, **said}
        return
    yield {}


def _raised(said: Mapping[str, Any]) -> GgufMlaError:
    kind = InputError if said["status"] == InputError.status else MachineError
    return kind(said["what"], **{name: said[name] for name in PARTS[1:]})
