"""What a user is told of files that are read over the network, and how fast they may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gguf_mla import units
from gguf_mla.files.readable import Elsewhere
from gguf_mla.remote.outgoing import SENT
from gguf_mla.remote.tape import MEMORY
from gguf_mla.remote.traffic import TRAFFIC
from gguf_mla.stream.chunks import parts, placed
from gguf_mla.stream.goal import Goal
from gguf_mla.stream.order import arranged, tape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gguf_mla.cli.options import RunOptions
    from gguf_mla.remote.destination import Destination
    from gguf_mla.sources.tensor import SourceTensor
    from gguf_mla.stream.engine import Task
    from gguf_mla.stream.run import Job


class Needs(NamedTuple):
    """What a run will read over the network: bytes, requests, and the memory that reading ahead takes."""

    bytes: int
    requests: int
    memory: int


def is_remote(job: Job) -> bool:
    """Whether a run reads anything over the network."""
    return any(isinstance(path, Elsewhere) for path in job.inputs)


def limit(options: RunOptions) -> None:
    """Hold all reading from the hub, and all sending to it, to the rate that the user allows."""
    TRAFFIC.limit = SENT.limit = None if options.bandwidth is None else float(units.parse_size(options.bandwidth))


def needs(job: Job) -> Needs | None:
    """Return what a run will read over the network; None for one that reads nothing."""
    tape = tape_of(job.inputs)
    if tape is None:
        return None
    outputs = [output for _, output in job.outputs]
    tensors = placed(outputs, Goal.of(outputs).layouts)

    def says() -> Iterator[Callable[[], object]]:
        for task in arranged(parts(tensors), job.sources, tape):
            yield _wanting(job.sources[task.part.source], task)

    nbytes, requests = tape.measure(says())
    files = sum(isinstance(path, Elsewhere) for path in job.inputs)
    return Needs(nbytes, requests + files, MEMORY)


def _wanting(source: SourceTensor, task: Task) -> Callable[[], object]:
    return lambda: source.will_read(task.start, task.stop)


def needs_json(job: Job) -> dict[str, int] | None:
    """Return the same as JSON-ready data, as a document's `run` has it."""
    found = needs(job)
    return None if found is None else found._asdict()


def needs_text(job: Job) -> list[str]:
    """Return the same in a line; no line where nothing is read over the network."""
    found = needs(job)
    if found is None:
        return []
    memory = f"and {units.size(found.memory)} of memory more"
    return [f"network: {units.size(found.bytes)} in about {found.requests} requests, {memory}"]


def note(job: Job, sink: Destination | None = None) -> Callable[[], str] | None:
    """Return what says how fast files come and go over the network at a moment; None where none do."""
    says = [*([_state] if is_remote(job) else []), *([sink.state] if sink else [])]
    return (lambda: ", ".join(filter(None, (say() for say in says)))) if says else None


def _state() -> str:
    count = TRAFFIC.count()
    retries = f", {count.retries} retries" if count.retries else ""
    waiting = f", {TRAFFIC.waiting} waiting" if TRAFFIC.waiting else ""
    return f"network {units.size(TRAFFIC.rate())}/s{retries}{waiting}"


def result_json(job: Job) -> dict[str, float] | None:
    """Return what has gone over the network as JSON-ready data, as a document's `run` has it."""
    count = TRAFFIC.count()
    return count._asdict() | {"waited": round(count.waited, 1)} if is_remote(job) else None


def result_text(job: Job) -> list[str]:
    """Return what has gone over the network in a line; no line where nothing has."""
    if not is_remote(job):
        return []
    count = TRAFFIC.count()
    retries = f", {count.retries} attempts failed, {count.waited:.0f} s of waiting" if count.retries else ""
    return [f"network: {units.size(count.bytes)} in {count.requests} requests{retries}"]
