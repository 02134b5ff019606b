"""Files that workers without a shared folder build and send: to a folder, and to stores of both kinds.

The hub is in tests/remote/test_upload.py, a Ray cluster in test_on_ray.py.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import tempfile
from typing import TYPE_CHECKING, Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from gguf_mla.errors import MachineError
from gguf_mla.remote import store as stores
from gguf_mla.remote.store import Store
from gguf_mla.stream.sharing import ledger
from tests.plan.contract import ok, plan, rounded
from tests.support import crash, hub
from tests.support.command import Answer, gguf_mla

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Shared
    from tests.support.crash import Job


class Machines:
    """Workers with a disk each, a folder that files are sent to, and the files of a plain run."""

    def __init__(self, job: Job, place: Path, right: dict[str, bytes], patch: pytest.MonkeyPatch) -> None:
        self.file, self.out, self.store, self._place, self._patch = (
            place / "plan.json", place / "out", place / "store", place, patch,
        )  # fmt: skip
        self.job, self.url = job, f"file://{self.store}"
        self.right = {name: content for name, content in right.items() if name.endswith(".gguf")}
        self.out.mkdir()
        self.on("planner")

    def on(self, machine: str) -> Path:
        """Go to a machine, and return its scratch."""
        (scratch := self._place / machine).mkdir(exist_ok=True)
        self._patch.setattr(tempfile, "tempdir", str(scratch))
        return scratch

    def plan(self, *more: object) -> Answer:
        return plan(self.job, self.out, self.file, "--upload", self.url, *more)

    def work(self, *share: object, machine: str = "one") -> Answer:
        self.on(machine)
        return gguf_mla("work", self.file, *share, "--threads", 1, "--quiet")

    def finish(self) -> Answer:
        self.on("planner")
        return gguf_mla("finish", self.file, "--quiet")

    @property
    def folder(self) -> Path:
        return self.store / f"{min(self.right)}.work"

    def records(self, number: int) -> list[Path]:
        return sorted(self.folder.glob(f"{number:05}-*.json"))

    def check(self) -> None:
        """Everything is there, under its name, and nothing else anywhere."""
        found = crash.content(self.store)
        sums = {name: found.pop(name).decode() for name in [*found] if name.endswith(".sha256")}
        assert found == self.right
        digests = {f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in self.right.items()}
        assert {line for text in sums.values() for line in text.splitlines()} == digests
        assert list(self.out.iterdir()) == []
        assert [path.name for path in self._place.glob("*/gguf-mla-*.gguf*")] == []


@pytest.fixture(scope="session")
def small(shared: Shared) -> Path:
    """A checkpoint, and beside it what the plain command makes of it."""

    def write(directory: Path) -> None:
        hub.write(directory / "model", "v3", num_hidden_layers=2, n_routed_experts=4)
        (directory / "right").mkdir()
        ok(gguf_mla(*(word.format(out=directory / "right") for word in line(directory / "model"))))

    return shared("plan-parts", write)


def line(model: Path) -> list[str]:
    return ["convert", str(model), "{out}/o.gguf", "--type", "Q8_0", "--split-max-tensors", "8", "--quiet"]


@pytest.fixture
def machines(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    job = crash.Job(tuple(line(small / "model")))
    found = Machines(job, tmp_path, crash.content(small / "right"), monkeypatch)
    ok(found.plan())
    return found


def test_ranks_in_any_order_on_disks_of_their_own(machines: Machines) -> None:
    """One of them twice; the notes that make a model complete come last."""
    ranks = [*range(3), 0]
    random.Random(3).shuffle(ranks)
    for rank in ranks:
        ok(machines.work("--rank", rank, "--of", 3, machine=f"node-{rank}"))
    assert not list(machines.store.glob("*.sha256"))
    ok(machines.finish())
    machines.check()


def test_the_hidden_parts_of_a_command_go_too(
    jobs: dict[str, Job],
    undisturbed: dict[str, dict[str, bytes]],
    told: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The importance matrix that an upgrade writes beside its output; what reading has shown is told in the end."""
    for kind in ("upgrade", "repack"):
        (place := tmp_path / kind).mkdir()
        machines = Machines(jobs[kind], place, undisturbed[kind], monkeypatch)
        ok(machines.plan())
        ok(machines.work())
        assert rounded(ok(machines.finish())) == told[kind]
        found = crash.content(machines.store)
        assert {name: found[name] for name in undisturbed[kind]} == undisturbed[kind]
        assert {*found} - {*undisturbed[kind]} == {f"{min(machines.right)}.sha256"}


def test_two_workers_send_the_same_file(machines: Machines) -> None:
    ok(machines.work("--jobs", 1))
    kept = {path: path.read_bytes() for path in machines.records(1)}
    for path in kept:
        path.unlink()
    ok(machines.work("--jobs", "0-1", machine="two"))
    assert len(machines.records(0)) == 1
    for path, content in kept.items():
        path.write_bytes(content)
    assert len(machines.records(1)) == 2
    ok(machines.work())
    ok(machines.finish())
    machines.check()


def test_a_worker_killed_at_any_instant_loses_nothing(machines: Machines) -> None:
    for instant in random.Random(2).sample(range(1, 60), 3):
        crash.killed_at(instant, lambda: machines.work("--rank", 0, "--of", 2))
        names = {path.name for path in machines.store.glob("*.gguf")}
        assert all((machines.store / name).read_bytes() == machines.right[name] for name in names)
    assert "not all of the files are there" in machines.finish().output
    ok(machines.work())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "drop", broken_after(0, Store.drop))  # when everything can be seen, and notes are left
        assert "the line is dead" in machines.finish().output
    ok(machines.finish())
    machines.check()


# -------------------------------------------------------------------------------------------------------------- records


def test_records_that_are_torn_anothers_or_without_a_file_count_as_not_there(machines: Machines) -> None:
    ok(machines.work())
    assert len(machines.right) > 4
    of = [machines.records(number)[0] for number in range(5)]
    of[0].write_bytes(of[0].read_bytes()[:-9])
    of[1].write_bytes(of[4].read_bytes())
    of[2].write_text(ledger.signed(json.loads(of[2].read_text()) | {"plan": "0" * 64}))
    (machines.store / sorted(machines.right)[3]).unlink()
    answer = machines.finish()
    assert answer.status == 2
    assert "Run gguf-mla work with --jobs 0-3." in answer.output
    ok(machines.work("--jobs", "0-3", machine="two"))
    ok(machines.finish())
    machines.check()


def test_an_object_with_other_bytes_is_found_and_never_replaced_unasked(machines: Machines) -> None:
    ok(machines.work())
    there = machines.store / min(machines.right)
    there.write_bytes(bytes(there.stat().st_size))
    assert "Run gguf-mla work with --jobs 0." in machines.finish().output
    answer = machines.work("--jobs", 0)
    assert answer.status == 3
    assert "is there already, and not this file" in answer.output
    there.unlink()
    ok(machines.work("--jobs", 0))
    ok(machines.finish())
    machines.check()


def test_two_machines_that_make_different_bytes_stop_everything(machines: Machines) -> None:
    ok(machines.work())
    [record] = machines.records(1)
    said = json.loads(record.read_text())
    del said["sha256"]
    other = record.with_name("00001-00000000.json")
    other.write_text(
        ledger.signed(said | {"worker": "node-7, process 1", "receipt": said["receipt"] | {"sha256": "0"}})
    )
    for answer in (machines.work("--jobs", 2), machines.finish(), machines.work()):
        assert answer.status == 3
        assert re.search("job 1 was done twice, and not to the same bytes: by node-7, process 1 and by", answer.output)
    other.unlink()
    (machines.folder / "stop.json").unlink()
    ok(machines.finish())
    machines.check()


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_bad_weight_stops_the_others(pristine: Path, machines: Machines, tmp_path: Path) -> None:
    bad = shutil.copytree(pristine, tmp_path / "bad")
    shard = max(bad.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-40] + b"\xff" * 40)
    words = [word.format(out=machines.out) for word in line(bad)]
    ok(gguf_mla("plan", *words, "--out", tmp_path / "p.json", "--upload", machines.url))
    machines.file = tmp_path / "p.json"
    assert "has a weight that is not a finite number" in machines.work().output
    answer = machines.work("--jobs", 1, machine="two")
    assert answer.status == 2
    assert re.search("the work was stopped by .*has a weight that is not a finite number", answer.output)


def test_a_complete_model_and_work_by_another_plan_are_left_alone(machines: Machines, tmp_path: Path) -> None:
    ok(machines.work("--jobs", 0))
    plain = [*(word.format(out=machines.out) for word in machines.job.arguments), "--upload", machines.url]
    other = ("plan", *plain, "--pure", "--out", tmp_path / "other.json")
    machines.on("planner")
    ok(gguf_mla(*other))
    answer = gguf_mla("work", tmp_path / "other.json", "--quiet")
    assert answer.status == 2
    assert "work by another plan is unfinished there" in answer.output
    ok(machines.work())
    ok(machines.finish())
    machines.check()
    for answer in (gguf_mla(*plain), gguf_mla("plan", *plain, "--out", tmp_path / "again.json"), machines.finish()):
        assert answer.status == 2
        assert re.search(r"\.gguf\.sha256: is there already", answer.output)
    ok(gguf_mla(*plain, "--overwrite"))
    machines.check()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--keep",), "--keep is for an upload by one process"),
        (("--private",), "--private is for a repository of the hub"),
        (("--upload", "nowhere://x/y"), "Protocol not known: nowhere"),
        (("--upload", "file:///proc/nothing/here"), ""),
    ],
)
def test_what_cannot_be_sent_is_refused(
    options: tuple[str, ...], said: str, machines: Machines, tmp_path: Path
) -> None:
    machines.file = tmp_path / "p.json"
    answer = machines.plan(*options)
    if said:
        assert answer.status == 2
    else:
        answer = machines.work("--jobs", 0)
        assert answer.status == 3
        said = "the store fails"
    assert said in answer.output, answer.output


# --------------------------------------------------------------------------------------------------------------- stores


class Bucket(MemoryFileSystem):  # type: ignore[misc]
    """A store that shows an object when all of it was sent, and says of it what changes with its content."""

    protocol = "bucket"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    reads: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("bucket://").strip("/")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "wb" or "data" in options:
            self.reads.append(path)
            return super()._open(path, mode, data=options.get("data"))
        return Sending(self, path, "wb", block_size=options["block_size"], autocommit=options["autocommit"])

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().info(path)
        if found["type"] == "file":
            found["ETag"] = hashlib.md5(self.store[self._strip_protocol(path)].getvalue()).hexdigest()
        return found


class Sending(AbstractBufferedFile):  # type: ignore[misc]
    sent = b""

    def _upload_chunk(self, final: bool = False) -> bool:
        self.sent += self.buffer.getvalue()
        if final and self.autocommit:
            self.commit()
        return True

    def _initiate_upload(self) -> None:
        """Nothing has to be said before."""

    def commit(self) -> None:
        self.fs.pipe_file(self.path, self.sent)

    def discard(self) -> None:
        self.sent = b""


@pytest.fixture(params=["bucket", "memory"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    monkeypatch.setattr(stores, "STORES", frozenset({"bucket"}))
    yield f"{request.param}://models/{request.node.name}"
    Bucket.store.clear()
    Bucket.reads.clear()


def test_a_plain_run_sends_to_a_store(url: str, machines: Machines) -> None:
    ok(gguf_mla(*(word.format(out=machines.out) for word in machines.job.arguments), "--upload", url))
    system, root = fsspec.core.url_to_fs(url)
    found = {path.rpartition("/")[2]: bytes(system.cat_file(path)) for path in system.find(root)}
    assert {name: found[name] for name in found if name.endswith(".gguf")} == machines.right
    assert len(found) == len(machines.right) + 1
    assert list(machines.out.iterdir()) == []


def test_a_file_that_is_not_sent_whole_is_not_there(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a store says of a content is believed, so that it need not be read."""
    built = tmp_path / "built"
    built.write_bytes(bytes(range(256)) * 100)
    place = Store(url, {tmp_path / "m.gguf": "m.gguf"}, lambda _a, _b: {}, keeps=False, overwrite=False)
    with monkeypatch.context() as patch:
        patch.setattr(stores, "BLOCK", 1000)
        patch.setattr(stores.Outgoing, "read", broken_after(9, stores.Outgoing.read))
        with pytest.raises(MachineError, match=r"the store fails \(OSError: the line is dead\)"):
            place.take(tmp_path / "m.gguf", built)
    system, root = fsspec.core.url_to_fs(url)
    assert system.find(root) == []
    receipt = place.take(tmp_path / "m.gguf", built)
    Bucket.reads.clear()
    assert place.has({"m.gguf": receipt, "n.gguf": receipt}) == {"m.gguf"}
    assert Bucket.reads == []
    system.pipe_file(f"{root}/m.gguf", bytes(len(built.read_bytes())))
    assert place.has({"m.gguf": receipt}) == set()


def broken_after(count: int, read: Callable[..., bytes]) -> Callable[..., bytes]:
    left = [count]

    def broken(*arguments: Any) -> bytes:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("the line is dead")
        return read(*arguments)

    return broken
