"""A plan that leaves the process: the command as data, what it reads and writes, and the jobs it is cut into.

Whoever has the file makes the plan again from the command, with the same program and the same inputs, and compares: so
the file stays small, and nobody writes a byte by another plan. It is never changed; what was done is noted elsewhere
(ledger.py).
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError
from gguf_mla.files import json_text
from gguf_mla.files.input import read_small
from gguf_mla.plan.jobs import NO_IMPORTANCE
from gguf_mla.stream.chunks import placed
from gguf_mla.stream.goal import Goal
from gguf_mla.stream.identity import Identity, difference, identity
from gguf_mla.stream.sharing.cut import SharedJob, cut, job_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gguf_mla.stream.run import Job

FORMAT = 1  # of the file; another one is refused
PROGRAM = "gguf-mla"
AGAIN = "Make the plan again"


@dataclass(frozen=True)
class Order:
    """What a user has asked for: a command, its options by their names, and where that was.

    measured  what had to be measured for it, so that nobody measures again; empty without a wanted size
    """

    command: str
    options: Mapping[str, Any]
    directory: str
    measured: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True)
class SharedPlan:
    """A plan as a file holds it.

    order    the command
    largest  bytes of the largest job, unless a single task has more
    made_of  what the run is made of, as a journal has it
    outputs  the files: path, bytes, and size and SHA-256 of the head
    jobs     what there is to do
    """

    order: Order
    largest: int
    made_of: Mapping[str, Any]
    outputs: Sequence[Mapping[str, Any]]
    jobs: Sequence[SharedJob]

    @classmethod
    def of(cls, order: Order, job: Job, largest: int | None = None) -> SharedPlan:
        """Cut a run into jobs of at most `largest` bytes; InputError for an input that cannot be read."""
        outputs = [output for _, output in job.outputs]
        goal, importance = Goal.of(outputs), job.importance or NO_IMPORTANCE
        stated = identity(goal.planned, goal.layouts, job.inputs, importance)
        limit = largest or job_bytes(goal.nbytes)
        jobs = cut(placed(outputs, goal.layouts), job.sources, limit, weighted=importance is not NO_IMPORTANCE)
        files = [
            {
                "path": str(file.path),
                "bytes": layout.size,
                "head": {"bytes": len(layout.head), "sha256": hashlib.sha256(layout.head).hexdigest()},
                "tensors": len(file.tensors),
            }
            for file, layout in zip(goal.planned, goal.layouts, strict=True)
        ]
        return cls(order, limit, asdict(stated), files, jobs)

    @property
    def nbytes(self) -> int:
        """How many bytes all jobs write."""
        return sum(job.nbytes for job in self.jobs)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of what is written: plans with the same digest write the same bytes in the same jobs."""
        outputs, jobs = [dict(output) for output in self.outputs], [job.to_data() for job in self.jobs]
        return _sha256([dict(self.made_of), outputs, jobs])

    def to_text(self) -> str:
        """Return what the file holds: JSON, with a line for each job."""
        content = self.content()
        rows = ",\n".join(json.dumps(job) for job in content.pop("jobs"))
        head = "".join(f"{json.dumps(name)}: {json.dumps(value)},\n" for name, value in content.items())
        return f'{{\n{head}"sha256": "{_sha256(self.content())}",\n"jobs": [\n{rows}\n]}}\n'

    def content(self) -> dict[str, Any]:
        """Return the file as JSON-ready data, without the digest of all of it."""
        return {
            "program": PROGRAM,
            "format": FORMAT,
            "version": self.made_of["version"],
            "digest": self.digest,
            **asdict(self.order),
            "job_bytes": self.largest,
            "made_of": dict(self.made_of),
            "outputs": [dict(output) for output in self.outputs],
            "jobs": [job.to_data() for job in self.jobs],
        }

    def check(self, other: SharedPlan) -> None:
        """Raise InputError, saying what has changed, unless a plan that was made again is this one."""
        if other.digest == self.digest:
            return
        changed = difference(self.made_of, Identity(**other.made_of)) or "with other jobs"
        raise InputError(
            f"this machine would make another plan: the one in the file was begun {changed}",
            expected=f"digest {self.digest[:16]}",
            found=f"digest {other.digest[:16]}",
            remedy=f"Use the same version and the same files on all machines, or {AGAIN[0].lower()}{AGAIN[1:]}",
        )


def shared_out(jobs: Sequence[Any], of: int) -> list[list[Any]]:
    """Return what each of `of` workers has to do, in its order: the longest first went to whoever had least."""
    loads = [(0.0, number) for number in range(of)]
    found: list[list[Any]] = [[] for _ in range(of)]
    for job in sorted(jobs, key=lambda job: (-job.seconds, job.number)):
        load, number = heapq.heappop(loads)
        heapq.heappush(loads, (load + job.seconds, number))
        found[number].append(job)
    return [sorted(share, key=lambda job: job.number) for share in found]


def read(path: Path) -> SharedPlan:
    """Return the plan in a file; InputError for one that is damaged, or of another format or version."""
    try:
        return parse(read_small(path, json_text.MAX_BYTES))
    except ValueError as error:
        raise InputError(f"is not a plan ({error})", file=path, remedy=AGAIN) from None


def parse(text: bytes) -> SharedPlan:
    """Return the plan that a text holds; ValueError with the reason for one that is not sound."""
    data = json_text.parse(text)
    if not isinstance(data, dict) or data.get("program") != PROGRAM:
        raise ValueError("it does not say so")
    if data.get("format") != FORMAT:
        raise ValueError(f"its format is {data.get('format')!r}, and this version knows {FORMAT}")
    try:
        order = Order(data["command"], data["options"], data["directory"], data["measured"])
        jobs = [SharedJob.from_data(job) for job in data["jobs"]]
        plan = SharedPlan(order, int(data["job_bytes"]), data["made_of"], data["outputs"], jobs)
        if data["sha256"] != _sha256(plan.content()):
            raise ValueError("it was changed: its digest is another one")
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from None
    return plan


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
