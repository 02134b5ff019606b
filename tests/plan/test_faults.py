"""Workers that die, meet at the same bytes, differ, or have another plan: the right bytes come of it, or a sentence."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.cli import launch, resolve, sharing
from gguf_mla.codec import device
from gguf_mla.codec.on_cpu import CPU
from gguf_mla.errors import MachineError
from gguf_mla.files.output import SharedFile, partial_path
from gguf_mla.stream import identity
from gguf_mla.stream.sharing import plan as plans
from gguf_mla.stream.sharing.ledger import Ledger
from gguf_mla.stream.sharing.record import Record
from tests.plan.contract import ok, plan
from tests.support import crash, hub
from tests.support.command import Answer, gguf_mla

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gguf_mla.codec.device import Device
    from tests.support.crash import Job


class Planned:
    """A plan of a small conversion, and what its processes do."""

    def __init__(self, job: Job, place: Path) -> None:
        self.file, self.out, self.job = place / "plan.json", place / "out", job
        self.out.mkdir()
        ok(plan(job, self.out, self.file))
        self.plan = plans.read(self.file)
        self.folder = self.out / "out.gguf.work"

    def work(self, *share: object) -> Answer:
        return gguf_mla("work", self.file, *share, "--threads", 1, "--quiet")

    def finish(self) -> Answer:
        return gguf_mla("finish", self.file, "--quiet")

    def record(self, number: int) -> Path:
        return self.folder / f"{number:05}.json"

    def other(self, number: int, worker: str) -> Record:
        """The record of a job as another machine would have written it, that computes wrongly."""
        found = Record.parse(self.record(number).read_bytes(), self.plan, number)
        sums = {name: digits[:-1] + "0123456789abcdef0"[int(digits[-1], 16) + 1] for name, digits in found.sums.items()}
        return replace(found, sums=sums, worker=worker)


@pytest.fixture
def planned(jobs: dict[str, Job], tmp_path: Path) -> Planned:
    return Planned(jobs["convert"], tmp_path)


@pytest.fixture
def right(undisturbed: dict[str, dict[str, bytes]]) -> dict[str, bytes]:
    return undisturbed["convert"]


# ------------------------------------------------------------------------------------------------------------ meeting


def test_two_ranks_write_one_file_at_the_same_time_and_one_of_them_twice(
    planned: Planned, right: dict[str, bytes]
) -> None:
    """And no range of theirs ends where a page does."""
    ends = [offset + size for job in planned.plan.jobs[:-1] for _, offset, size in job.ranges]
    assert sum(end % 4096 != 0 for end in ends) > len(ends) // 2
    shares = [partial(planned.work, "--rank", rank, "--of", 2) for rank in (0, 1, 0)]
    with crash.constant_saving():
        assert crash.forked_together([lambda share=share: ok(share()) for share in shares]) == [0, 0, 0]
    ok(planned.finish())
    assert crash.content(planned.out) == right


def test_nobody_finishes_or_runs_the_plain_command_while_a_worker_is_at_it(planned: Planned) -> None:
    ok(planned.work())
    known = Ledger(planned.out / "out.gguf", planned.plan).inodes()
    out = planned.out / "out.gguf"
    with SharedFile(out, 1, known={out.name: known[str(out)]}):
        for answer in (planned.finish(), gguf_mla(*(word.format(out=planned.out) for word in planned.job.arguments))):
            assert answer.status == 2
            assert "another process is writing this file" in answer.output


# ----------------------------------------------------------------------------------------------------------- dying


def test_a_worker_killed_at_any_instant_loses_nothing(planned: Planned, right: dict[str, bytes]) -> None:
    """And so does the one who finishes; `python -m tests.plan.kills` does thirty of each."""
    for instant in random.Random(1).sample(range(1, 60), 3):
        crash.killed_at(instant, lambda: planned.work("--rank", 0, "--of", 2))
    assert "not all of the work is done" in planned.finish().output
    ok(planned.work())
    for instant in (3, 8):
        assert crash.killed_at(instant, planned.finish) == -signal.SIGKILL
        for path in planned.out.glob("*.gguf"):
            assert path.read_bytes() == right[path.name]
    ok(planned.finish())
    assert crash.content(planned.out) == right


def test_a_full_disk_is_said_and_the_work_goes_on(planned: Planned, right: dict[str, bytes]) -> None:
    ok(planned.work("--rank", 1, "--of", 2))
    with crash.full_after(1_000_000):
        answer = planned.work("--rank", 0, "--of", 2)
    assert answer.status == 3
    assert "not enough free disk space" in answer.output
    ok(planned.work("--rank", 0, "--of", 2))
    ok(planned.finish())
    assert crash.content(planned.out) == right


# --------------------------------------------------------------------------------------------------------- another plan


@pytest.mark.parametrize("change", ["version", "input", "file"])
def test_a_worker_with_another_plan_is_refused(
    change: str, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = shutil.copytree(pristine, tmp_path / "checkpoint")
    line = ("convert", str(checkpoint), "{out}/out.gguf", "--type", "Q8_0", "--quiet")
    planned = Planned(crash.Job(line), tmp_path)
    if change == "version":
        monkeypatch.setattr(identity, "__version__", "9.9")
        said = r"begun by another version of gguf-mla \(0.1.0\).*the same version and the same files"
    elif change == "input":
        shard = min(checkpoint.glob("*.safetensors"))
        shard.write_bytes(shard.read_bytes())
        said = rf"begun from other inputs, {shard.name} has changed since"
    else:
        planned.file.write_text(planned.file.read_text().replace('"Q8_0"', '"Q4_0"'))
        said = "is not a plan .*it was changed.* Make the plan again"
    for answer in (planned.work(), planned.finish()):
        assert answer.status == 2
        assert re.search(said, answer.output), answer.output
    assert list(planned.out.iterdir()) == []


def test_work_by_another_plan_is_not_touched_without_no_resume(planned: Planned, tmp_path: Path) -> None:
    ok(planned.work("--jobs", "0"))
    before = {path: path.stat().st_mtime_ns for path in planned.out.rglob("*")}
    name, source, out, *_ = (word.format(out=planned.out) for word in planned.job.arguments)
    line = ("plan", name, source, out, "--type", "Q8_0", "--out", tmp_path / "other.json")
    answer = gguf_mla(*line)
    assert answer.status == 2
    assert "work by another plan is unfinished here" in answer.output
    assert {path: path.stat().st_mtime_ns for path in planned.out.rglob("*")} == before
    ok(gguf_mla(*line, "--no-resume"))
    assert list(planned.out.iterdir()) == []


@pytest.mark.parametrize("name", ["out.gguf.partial", "out.gguf.work"])
def test_a_strangers_file_is_left_alone(name: str, planned: Planned) -> None:
    (planned.out / name).write_text("mine")
    answer = planned.work()
    assert answer.status == 2
    assert name in answer.output
    assert (planned.out / name).read_text() == "mine"


# ----------------------------------------------------------------------------------------------------------- records


def torn(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def edited(path: Path, _: Path) -> None:
    path.write_text(path.read_text().replace('"crc32": {', '"crc32": {"blk.9.ffn_up.weight": "00000000",'))


def anothers(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def nonsense(path: Path, _: Path) -> None:
    path.write_text(json.dumps({"job": 1, "crc32": [[]] * 9}))


@pytest.mark.parametrize("damage", [torn, empty, edited, anothers, nonsense], ids=lambda damage: damage.__name__)
def test_a_torn_or_forged_record_counts_as_not_there(
    damage: Callable[[Path, Path], None], planned: Planned, right: dict[str, bytes]
) -> None:
    ok(planned.work())
    damage(planned.record(1), planned.record(2))
    answer = planned.finish()
    assert answer.status == 2
    assert "Run gguf-mla work with --jobs 1." in answer.output
    ok(planned.work("--jobs", "1"))
    ok(planned.finish())
    assert crash.content(planned.out) == right


def test_bytes_that_are_not_what_a_record_says_are_written_again(planned: Planned, right: dict[str, bytes]) -> None:
    ok(planned.work())
    [(_, offset, size)] = planned.plan.jobs[2].ranges
    for repair in (planned.work, lambda: None):
        with partial_path(planned.out / "out.gguf").open("r+b") as file:
            file.seek(offset + size // 2)
            file.write(bytes(64))
        repair()
    ok(planned.finish())
    assert crash.content(planned.out) == right


def test_two_machines_that_make_different_bytes_stop_everything(planned: Planned, right: dict[str, bytes]) -> None:
    ok(planned.work())
    wrong = planned.other(1, "node-7, process 1")
    planned.record(1).write_text(wrong.to_text())
    for answer in (planned.work("--jobs", "1"), planned.work("--jobs", "2"), planned.finish()):
        assert answer.status == 3
        assert re.search(r"job 1 was done twice, and not to the same bytes: by node-7, process 1 and by", answer.output)
    (planned.folder / "stop.json").unlink()
    planned.record(1).unlink()
    ok(planned.work("--jobs", "1"))
    ok(planned.finish())
    assert crash.content(planned.out) == right


def test_who_notes_second_compares(planned: Planned) -> None:
    ok(planned.work("--jobs", "1"))
    ledger = Ledger(planned.out / "out.gguf", planned.plan)
    found = Record.parse(planned.record(1).read_bytes(), planned.plan, 1)
    ledger.note(replace(found, worker="node-7, process 1", seconds=1.0))
    with pytest.raises(MachineError, match="and by node-7, process 1"):
        ledger.note(planned.other(1, "node-7, process 1"))


def test_the_one_who_finishes_finds_a_wrong_record(planned: Planned) -> None:
    ok(planned.work())
    planned.record(1).write_text(planned.other(1, "node-7, process 1").to_text())
    answer = planned.finish()
    assert answer.status == 3
    assert "node-7, process 1" in answer.output
    assert not (planned.out / "out.gguf").exists()


# ------------------------------------------------------------------------------------------------------------ requests


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (("--rank", 0), "--rank and --of belong together"),
        (("--rank", 4, "--of", 4), "expected 0 to 3"),
        (("--jobs", "1", "--rank", 0, "--of", 2), "exclude each other"),
        (("--jobs", "1-999"), "these are not jobs of the plan"),
        (("--jobs", "x"), "these are not jobs of the plan"),
    ],
)
def test_a_share_that_cannot_be_is_refused(share: tuple[Any, ...], said: str, planned: Planned) -> None:
    answer = planned.work(*share)
    assert answer.status == 2
    assert said in answer.output


def test_a_plan_is_of_a_command_that_writes_by_itself(tmp_path: Path) -> None:
    answer = gguf_mla("plan", "convert", "x", "--calibrate", "text", "--out", tmp_path / "p.json")
    assert answer.status == 2
    assert "Make it with gguf-mla imatrix" in answer.output


def test_a_plan_that_is_shown_only_is_not_written(pristine: Path, tmp_path: Path) -> None:
    answer = gguf_mla("plan", "convert", pristine, tmp_path / "o.gguf", "--out", tmp_path / "p.json", "--dry-run")
    assert "o.gguf" in ok(answer).output
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------- what a plan remembers


def test_what_was_measured_for_a_plan_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.write(tmp_path / "model", "v3", num_hidden_layers=1, n_routed_experts=4)
    line = ("convert", str(tmp_path / "model"), "{out}/out.gguf", "--target-bpw", "8.5", "--quiet")
    (plain := tmp_path / "plain").mkdir()
    ok(gguf_mla(*(word.format(out=plain) for word in line)))
    planned = Planned(crash.Job(line), tmp_path)
    monkeypatch.setattr(resolve, "errors", None)  # whoever measures would call it
    ok(planned.work("--rank", 1, "--of", 2))
    ok(planned.work("--rank", 0, "--of", 2))
    ok(planned.finish())
    assert crash.content(planned.out) == crash.content(plain)


def test_a_machine_without_the_device_of_a_plan_can_finish_it_or_use_another(
    planned: Planned, right: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "open_device", open_cpu_only)
    monkeypatch.setattr(sharing, "open_device", open_cpu_only)
    monkeypatch.setattr(launch, "open_device", open_cpu_only)
    order = replace(planned.plan.order, options={**planned.plan.order.options, "device": "cuda"})
    planned.file.write_text(replace(planned.plan, order=order).to_text())
    answer = planned.work()
    assert (answer.status, "no GPU here" in answer.output) == (3, True), answer.output
    ok(planned.work("--device", "cpu"))
    ok(planned.finish())
    assert crash.content(planned.out) == right


def open_cpu_only(name: str) -> Device:
    if name != CPU.name:
        raise MachineError("no GPU here")
    return CPU
