"""What a user is told of files that are read over the network, and how fast they may be."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from gguf_mla import units
from gguf_mla.container.writer import lay_out
from gguf_mla.files.readable import Elsewhere
from gguf_mla.remote.tape import MEMORY
from gguf_mla.remote.traffic import TRAFFIC
from gguf_mla.stream.chunks import placed
from gguf_mla.stream.order import arranged, tape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tqdm import tqdm

    from gguf_mla.cli.options import RunOptions
    from gguf_mla.sources.tensor import SourceTensor
    from gguf_mla.stream.engine import Task
    from gguf_mla.stream.run import Job

SHOWN_SECONDS = 0.5  # between two looks at the rate


class Needs(NamedTuple):
    """What a run will read over the network: bytes, requests, and the memory that reading ahead takes."""

    nbytes: int
    requests: int
    memory: int


def is_remote(job: Job) -> bool:
    """Whether a run reads anything over the network."""
    return any(isinstance(path, Elsewhere) for path in job.inputs)


def limit(options: RunOptions) -> None:
    """Hold all reading from the hub to the rate that the user allows."""
    TRAFFIC.limit = None if options.bandwidth is None else float(units.parse_size(options.bandwidth))


def needs(job: Job) -> Needs | None:
    """Return what a run will read over the network; None for one that reads nothing."""
    tape = tape_of(job.inputs)
    if tape is None:
        return None
    layouts = [lay_out(file.metadata, [t.spec for t in file.tensors]) for _, out in job.outputs for file in out]
    tensors = placed([output for _, output in job.outputs], layouts)

    def says() -> Iterator[Callable[[], object]]:
        for task in arranged(tensors, job.sources, tape):
            yield _wanting(job.sources[task.part.source], task)

    nbytes, requests = tape.measure(says())
    files = sum(isinstance(path, Elsewhere) for path in job.inputs)
    return Needs(nbytes, requests + files, MEMORY)


def _wanting(source: SourceTensor, task: Task) -> Callable[[], object]:
    return lambda: source.will_read(task.start, task.stop)


def needs_json(found: Needs) -> dict[str, Any]:
    """Return it as JSON-ready data."""
    return {"network": {"bytes": found.nbytes, "requests": found.requests, "memory": found.memory}}


def needs_text(found: Needs) -> str:
    """Return it in a line."""
    memory = f"and {units.size(found.memory)} of memory more"
    return f"network: {units.size(found.nbytes)} in about {found.requests} requests, {memory}"


def updating(bar: tqdm[Any], job: Job) -> Callable[[int], object]:
    """Return what a bar is told of progress by; where files come over the network it shows how fast they do."""
    return _shown(bar) if is_remote(job) else bar.update


def _shown(bar: tqdm[Any]) -> Callable[[int], object]:
    due = 0.0

    def update(nbytes: int) -> None:
        nonlocal due
        if (now := time.monotonic()) >= due:
            due = now + SHOWN_SECONDS
            bar.set_postfix_str(_state(), refresh=False)
        bar.update(nbytes)

    return update


def _state() -> str:
    count = TRAFFIC.count()
    retries = f", {count.retries} retries" if count.retries else ""
    waiting = f", {TRAFFIC.waiting} waiting" if TRAFFIC.waiting else ""
    return f"network {units.size(TRAFFIC.rate())}/s{retries}{waiting}"


def result_json() -> dict[str, Any]:
    """Return what has gone over the network as JSON-ready data."""
    count = TRAFFIC.count()
    return {
        "bytes": count.nbytes,
        "requests": count.requests,
        "retries": count.retries,
        "waited": round(count.waited, 1),
    }


def result_text() -> str:
    """Return what has gone over the network in a line."""
    count = TRAFFIC.count()
    retries = f", {count.retries} attempts failed, {count.waited:.0f} s of waiting" if count.retries else ""
    return f"network: {units.size(count.nbytes)} in {count.requests} requests{retries}"
