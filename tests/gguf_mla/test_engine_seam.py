"""Tasks and what was done are plain data: another process does them with what it has opened itself."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from convert.plan import plan_conversion
from gguf_mla.container.writer import FileLayout, lay_out
from gguf_mla.errors import MachineError
from gguf_mla.files.output import OutputFile
from gguf_mla.plan.jobs import NO_IMPORTANCE, Part
from gguf_mla.plan.outputs import Output, single
from gguf_mla.sources.checkpoint import open_checkpoint
from gguf_mla.stream.chunks import placed, tasks
from gguf_mla.stream.engine import AHEAD, Done, InLine, Target, Task
from gguf_mla.stream.execute import execute
from gguf_mla.stream.threads import Threads
from gguf_mla.stream.worker import TensorWorker
from tests.support import crash, hub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gguf_mla.stream.engine import Engine

ENGINES = (InLine(), Threads(3))


def do(pickled: bytes, checkpoint: Path, files: list[tuple[Path, int]]) -> bytes:
    """What another process does: it gets tasks and paths, opens what they need, and answers with what was done."""
    with ExitStack() as stack:
        targets = [stack.enter_context(OutputFile(path, size)) for path, size in files]
        worker = TensorWorker(open_checkpoint(checkpoint).tensors, NO_IMPORTANCE, targets)
        answer = pickle.dumps([worker.do(task) for task in pickle.loads(pickled)])
        for target in targets:
            target.finish()
            target.commit()
    return answer


def planned(checkpoint: Path, out: Path) -> tuple[list[Output], list[FileLayout]]:
    plans = [plan for plan, _ in plan_conversion(open_checkpoint(checkpoint), ["Q4_0", "BF16"])]
    outputs = [single(plan, out / f"{number}.gguf") for number, plan in enumerate(plans)]
    return outputs, [lay_out(plan.metadata, [job.spec for job in plan.tensors]) for plan in plans]


def test_another_process_does_the_tasks_to_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = hub.write(tmp_path / "packed", "kimi-int4", num_hidden_layers=2, n_routed_experts=4)
    outputs, layouts = planned(checkpoint, tmp_path)
    source = open_checkpoint(checkpoint)
    files = [(tmp_path / f"other-{number}", layout.size) for number, layout in enumerate(layouts)]
    with crash.small_steps():
        result = execute(outputs, source.tensors)
        queue = list(tasks(placed(outputs, layouts)))
    assert pickle.loads(pickle.dumps(queue)) == queue
    assert len(queue) > 50
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        dones: list[Done] = pickle.loads(pool.submit(do, pickle.dumps(queue[::-1]), checkpoint, files).result())
    assert [done.number for done in dones] == [task.number for task in queue[::-1]]
    assert sum(done.nbytes for done in dones) == sum(job.spec.nbytes for output in outputs for job in output[0].tensors)
    said = source.remarks([remark for done in dones for remark in done.remarks])
    assert said == source.remarks(result.remarks) != []
    for (path, _), output, layout in zip(files, outputs, layouts, strict=True):
        other = bytearray(path.read_bytes())
        other[: len(layout.head)] = layout.head
        assert bytes(other) == output[0].path.read_bytes()


class Counting:
    """A worker that knows what it was asked, and fails at a task."""

    def __init__(self, fail_at: int = -1) -> None:
        self.expected: list[int] = []
        self.done: list[int] = []
        self.fail_at = fail_at

    def expect(self, task: Task) -> None:
        self.expected.append(task.number)

    def do(self, task: Task) -> Done:
        assert task.number in self.expected
        if task.number == self.fail_at:
            raise MachineError("the disk is gone")
        self.done.append(task.number)
        return Done(task.number, (0,), task.nbytes, {"encode": 1.0})


def queue(count: int) -> Iterator[Task]:
    for number in range(count):
        target = Target(0, "F32", None, 4 * number, 4)
        yield Task(number, "x", (count, 1), Part("x", 0, count), 0, number, number + 1, (target,))


@pytest.mark.parametrize("engine", ENGINES, ids=["in line", "threads"])
def test_an_engine_does_every_task_once_and_says_so(engine: Engine) -> None:
    worker = Counting()
    dones = list(engine.run(queue(100), worker))
    assert sorted(done.number for done in dones) == sorted(worker.done) == worker.expected == list(range(100))


@pytest.mark.parametrize("engine", ENGINES, ids=["in line", "threads"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MachineError("the disk is full")])
def test_what_stops_the_driver_ends_the_workers(engine: Engine, error: BaseException) -> None:
    before = threading.active_count()
    dones = engine.run(queue(10**9), Counting())
    next(dones)
    with pytest.raises(type(error)):
        dones.throw(error)
    assert threading.active_count() == before


@pytest.mark.parametrize("engine", ENGINES, ids=["in line", "threads"])
def test_an_error_of_a_worker_is_the_engines(engine: Engine) -> None:
    worker = Counting(fail_at=50)
    with pytest.raises(MachineError, match="the disk is gone"):
        list(engine.run(queue(10**9), worker))
    assert len(worker.done) < 10**5


def test_one_thread_is_the_calling_one_and_reads_ahead() -> None:
    worker = Counting()
    dones = InLine().run(queue(100), worker)
    next(dones)
    assert (worker.done, worker.expected) == ([0], list(range(AHEAD + 1)))
