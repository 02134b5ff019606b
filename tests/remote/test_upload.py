"""Uploads to a hub of this machine: parts, one commit, going on after a kill or a refusal, and a sentence for each."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import re
import shutil
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.errors import MachineError
from gguf_mla.remote import troubles
from gguf_mla.remote.upload import Upload
from tests.remote.disk import Disk
from tests.remote.reader import Read, Reader
from tests.remote.servers import Network
from tests.remote.uploads import Repository, Store
from tests.support import hub
from tests.support.command import gguf_mla
from tests.support.schema import faults
from tests.test_json import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = ("--split-max-size", "1500K")
ID = "me/tiny-GGUF"


class Desk:
    """A hub, a process that uploads to it, and what the same command leaves on the disk without an upload."""

    def __init__(self, place: Path, net: Network) -> None:
        self.place, self.net = place, net
        self.here = place / "here"
        self.here.mkdir()
        self.reader = self._begun()
        self.wanted = self._wanted()

    def _begun(self) -> Reader:
        settings = {"save": 0.05, "pause": 0.02, "patience": 2.0, "run": 1 << 18, "read": 5.0}
        return Reader(self.net, self.place / "home", settings, GGUF_MLA_SPOOL=str(self.place / "spool"))

    def _wanted(self) -> dict[str, bytes]:
        place = self.place / "wanted"
        place.mkdir()
        read = self.reader.run("convert", hub.BUNDLED, place / "m.gguf", "--type", "Q8_0", *SIZE)
        assert read.status == 0, read.said
        return {path.name: path.read_bytes() for path in place.iterdir()}

    @property
    def digests(self) -> dict[str, str]:
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.wanted.items()}

    def convert(self, *options: str, to: str = ID) -> Read:
        out = self.here / "m.gguf"
        return self.reader.run("convert", hub.BUNDLED, out, "--type", "Q8_0", *SIZE, "--upload", to, *options)

    def kill(self) -> None:
        self.reader.process.send_signal(signal.SIGKILL)
        self.reader.process.wait()

    def begin_again(self) -> None:
        for stream in (self.reader.process.stdin, self.reader.process.stdout):
            assert stream is not None
            stream.close()
        self.reader = self._begun()

    def left(self) -> list[str]:
        return sorted(path.name for path in self.here.iterdir())


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    place = tmp_path_factory.mktemp("desk")
    shutil.copytree(hub.BUNDLED, place / "model")
    with Network(place / "model") as net:
        desk = Desk(place, net)
        yield desk
        desk.reader.__exit__()
        assert not net.books.leaked, "the token went to the storage"


@pytest.fixture
def desk(opened: Desk) -> Desk:
    """The desk, with an empty hub and nothing on the disk."""
    opened.net.store = Store()
    for path in opened.here.iterdir():
        path.unlink()
    return opened


def shown(desk: Desk, repository: str = ID) -> dict[str, str]:
    found = desk.net.store.repositories[repository]
    return found.large


def test_parts_are_sent_as_they_are_complete_and_one_commit_shows_all(desk: Desk) -> None:
    desk.net.store.chunk = 400_000
    read = desk.convert("--json", "--private")
    assert read.status == 0, read.said
    assert shown(desk) == desk.digests
    for digest, content in zip(desk.digests.values(), desk.wanted.values(), strict=True):
        assert desk.net.store.contents[digest] == content
    found = desk.net.store.repositories[ID]
    assert (found.private, len(found.commits)) == (True, 2)  # the first is that of an empty repository
    assert desk.left() == []
    told = json.loads(read.said)
    assert list(faults(told, SCHEMA, SCHEMA)) == []
    upload = told["run"]["upload"]
    assert (upload["files"], upload["sent"], upload["kept"]) == (len(desk.wanted), upload["bytes"], False)
    assert {part["sha256"] for part in told["outputs"][0]["parts"]} == {*desk.digests.values()}
    lines = found.small["m.gguf.sha256"].decode().splitlines()
    assert lines == [f"{digest}  {name}" for name, digest in sorted(desk.digests.items())]
    page = found.small["README.md"].decode()
    assert "| bits per weight | " in page
    assert "    gguf-mla convert tiny-deepseek-v3 m.gguf --type Q8_0 --split-max-size 1500K\n" in page
    again = desk.convert("--private")  # which makes the same, and neither sends nor commits it twice
    assert again.status == 0, again.said
    assert (desk.net.store.sent.total(), len(found.commits)) == (upload["sent"], 2)


def test_two_parts_are_on_the_disk_at_most(desk: Desk) -> None:
    desk.net.store.rate = 8e6  # each part takes a while, and the next are soon made
    with Disk(desk.here) as disk:
        read = desk.convert()
    assert read.status == 0, read.said
    sizes = [len(desk.wanted[name]) for name in sorted(desk.wanted)]
    bound = max(a + b for a, b in itertools.pairwise(sizes)) + 4096 * (len(sizes) + 4)
    assert max(sizes) < disk.most <= bound < sum(sizes) / 2


def test_a_run_that_is_killed_goes_on_and_sends_nothing_twice(desk: Desk) -> None:
    desk.net.store.rate = 4e6

    def stop() -> None:
        while len(desk.net.store.contents) < 2:
            time.sleep(0.005)
        time.sleep(0.05)  # for the journal
        desk.kill()

    killer = threading.Thread(target=stop)
    killer.start()
    with pytest.raises(AssertionError, match="the child has died"):
        desk.convert()
    killer.join()
    assert ID in desk.net.store.repositories
    assert shown(desk) == {}
    before = {*desk.net.store.contents}
    desk.begin_again()
    desk.net.store.rate = None
    read = desk.convert("--json")
    assert read.status == 0, read.said
    assert shown(desk) == desk.digests
    for name, digest in desk.digests.items():
        assert desk.net.store.sent[digest] == len(desk.wanted[name]) or digest not in before
    told = json.loads(read.said)["run"]
    assert told["taken_over"] >= sum(len(c) for n, c in desk.wanted.items() if desk.digests[n] in before) // 2
    assert told["upload"]["sent"] <= sum(len(c) for n, c in desk.wanted.items() if desk.digests[n] not in before)
    assert len(desk.net.store.repositories[ID].commits) == 2


def test_an_interrupt_ends_an_upload_and_the_same_command_goes_on(desk: Desk) -> None:
    desk.net.store.rate = 3e6

    def press() -> None:
        while not desk.net.store.sent and not any(path.stat().st_size for path in desk.here.glob("*.partial")):
            time.sleep(0.005)
        time.sleep(0.2)
        desk.reader.process.send_signal(signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    read = desk.convert()
    finger.join()
    assert (read.status, "interrupted" in read.said.lower()) == (130, True), read.said
    assert len(desk.net.store.contents) < len(desk.wanted)  # it was not waited for what was still to be sent
    desk.net.store.rate = None
    assert desk.convert().status == 0
    assert shown(desk) == desk.digests


def test_a_commit_that_fails_loses_nothing(desk: Desk) -> None:
    desk.net.store.refuse("/commit/", 403, b'{"error": "Forbidden"}', X_Error_Message="no right to write to main")
    read = desk.convert()
    assert (read.status, "no right to write to main" in read.said) == (3, True), read.said
    assert read.said.count("error:") == 1
    sent = desk.net.store.sent.total()
    desk.net.store.refuse("/commit/", 503, b"busy")  # which passes
    again = desk.convert("--json")
    assert again.status == 0, again.said
    assert shown(desk) == desk.digests
    assert (desk.net.store.sent.total(), json.loads(again.said)["run"]["upload"]["sent"]) == (sent, 0)
    assert desk.left() == []


@pytest.mark.thorough
def test_what_the_hub_has_lost_is_made_and_sent_again(desk: Desk) -> None:
    desk.net.store.refuse("/commit/", 403, b"{}")
    assert desk.convert().status == 3
    lost = min(desk.digests.values())
    del desk.net.store.contents[lost]
    assert desk.convert().status == 0
    assert shown(desk) == desk.digests
    assert desk.net.store.contents.keys() == {*desk.digests.values()}


def test_storage_that_fails_for_a_while_is_tried_again(desk: Desk) -> None:
    desk.net.store.refuse("0", 403, b"<Error>expired</Error>", times=1)  # any content: the address holds no longer
    read = desk.convert()
    assert read.status == 0, read.said
    assert shown(desk) == desk.digests


def test_an_attempt_that_took_long_and_failed_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(troubles, "PATIENCE", 0.1)
    monkeypatch.setattr(troubles, "FIRST_PAUSE", 0.001)
    upload, sent = Upload(ID, {}, lambda _receipts, _read: {}, private=False, keeps=False), [0]

    def send() -> str:
        if sent[0] == 0:
            time.sleep(0.2)
            sent[0] = 1000
        raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(MachineError, match=r"the upload failed: .*, (?!1 )[0-9]+ times in a row"):
        upload.asked(send, reached=lambda: sent[0])


def test_a_page_of_somebody_else_stays(desk: Desk) -> None:
    desk.net.store.repositories[ID] = Repository(small={"README.md": b"# Mine\n\nRead this.\n"})
    assert desk.convert().status == 0
    found = desk.net.store.repositories[ID]
    assert found.small["README.md"] == b"# Mine\n\nRead this.\n"
    assert b"## m\n" in found.small["m.md"]
    words = b"Words of mine\r\nin Latin-1: \xe4\r\n"
    found.small["m.md"] = words + found.small["m.md"] + words
    assert desk.convert("--model-name", "Another").status == 0
    assert (found.small["m.md"].count(words), b"--model-name Another" in found.small["m.md"]) == (2, True)


def test_the_proof_of_the_same_bytes_is_told_on_the_page(desk: Desk) -> None:
    first = min(desk.wanted)
    proof: dict[str, Any] = {
        "command": "verify", "grade": "right", "reference": "someone/model", "candidate": f"x/{first}",
        "seconds": {"structure": 1.0, "weights": 2.0},
        "inputs": [{"path": "a", "bytes": None}, {"path": first, "bytes": len(desk.wanted[first])}],
    }  # fmt: skip
    path = desk.place / "proof.json"
    path.write_text(json.dumps(proof))
    assert desk.convert("--verdict", str(path)).status == 0
    page = desk.net.store.repositories[ID].small["README.md"].decode()
    assert "| verified | right, against model, as far as structure, weights can tell |" in page
    path.write_text(json.dumps(proof | {"inputs": [proof["inputs"][0], {"path": first, "bytes": 5}]}))
    read = desk.convert("--verdict", str(path))
    assert (read.status, "proves another file" in read.said) == (2, True)


REFUSALS = {
    "no namespace": (("convert", "stranger/x"), "does not allow this upload (status 403", 2),
    "not an id": (("convert", "nobody"), "is not the id of a repository", 2),
    "quota": (("batch", 403, b"{}", "Private repository storage limit reached"), "has no room for it", 3),
    "too large": (("batch", 413, b"{}", "Payload too large"), "--split-max-size", 3),
    "no right": (("preupload", 403, b"{}", "token has no write access"), "token has no write access", 2),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_each_refusal_is_a_sentence(desk: Desk, name: str) -> None:
    (what, *more), sentence, status = REFUSALS[name]
    if what == "convert":
        read = desk.convert(to=str(more[0]))
    else:
        code, body, message = more
        desk.net.store.refuse(what, code, body, X_Error_Message=message)
        read = desk.convert()
    assert (read.status, read.said.count("error:")) == (status, 1), read.said
    assert sentence in read.said


def test_a_repository_that_is_public_is_not_private(desk: Desk) -> None:
    desk.net.store.repositories[ID] = Repository()
    read = desk.convert("--private")
    assert (read.status, "is there, and is public" in read.said) == (2, True)
    assert "Give --upload" in desk.reader.run("convert", hub.BUNDLED, desk.here / "m.gguf", "--private").said


def test_parts_that_go_here_while_the_whole_is_elsewhere_are_warned_of(desk: Desk) -> None:
    parts = desk.place / "wanted"
    line = ("merge", next(iter(sorted(parts.iterdir()))), desk.here / "m.gguf", "--delete-splits", "--dry-run")
    words = "warning: after --delete-splits and --upload without --keep, the model is on the hub alone."
    assert words in desk.reader.run(*line, "--upload", ID).said
    assert words not in desk.reader.run(*line, "--upload", ID, "--keep").said
    assert words not in desk.reader.run(*line).said


def test_a_dry_run_creates_nothing(desk: Desk) -> None:
    read = desk.convert("--dry-run", "--json")
    assert read.status == 0, read.said
    assert json.loads(read.said)["run"]["upload"]["repository"] == ID
    assert desk.net.store.repositories == {}


def test_a_run_from_a_repository_that_has_moved_is_refused(desk: Desk) -> None:
    """A run that was stopped goes on while the files are the same, and only then."""
    shard, out = next(desk.net.directory.glob("*.safetensors")), desk.here / "far.gguf"
    content, command = shard.read_bytes(), ("--type", "BF16")
    desk.net.link.rate = 3e6

    def press() -> None:
        journal = out.with_name(out.name + ".journal")
        while not (journal.is_file() and re.search(r"^\d+ \d+ [0-9a-f]{8}$", journal.read_text(), re.MULTILINE)):
            time.sleep(0.01)
        desk.reader.process.send_signal(signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    stopped = desk.reader.run("convert", "someone/model", out, *command)
    finger.join()
    assert stopped.status == 130, stopped.said
    desk.net.link.rate = None
    shard.write_bytes(content[:-4] + bytes(4))
    try:
        refused = desk.reader.run("convert", "hf://someone/model@later", out, *command)
    finally:
        shard.write_bytes(content)
    assert (refused.status, f"{shard.name} has changed since" in refused.said) == (2, True), refused.said
    read = desk.reader.run("convert", "hf://someone/model@back", out, *command)
    assert read.status == 0, read.said


def test_what_was_spooled_is_not_fetched_again(desk: Desk) -> None:
    """Nor by another revision with the same files; without the spool it is."""
    options = ("--type", "BF16", "--overwrite", "--verify-source")
    digests = []
    for revision, spool, fetches in (
        ("one", ("--spool", "1G"), True),
        ("two", ("--spool", "1G"), False),
        ("two", (), True),
    ):
        before = len(desk.net.books.ranges)
        read = desk.reader.run("convert", f"hf://someone/model@{revision}", desk.here / "o.gguf", *options, *spool)
        assert read.status == 0, read.said
        digests.append(read.sha256)
        assert (len(desk.net.books.ranges) > before) == fetches
    assert len({*digests}) == 1


def test_without_a_token_or_the_extra_a_sentence_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    line = ("convert", hub.BUNDLED, tmp_path / "o.gguf", "--upload", "me/x")
    assert "takes a token that may write" in gguf_mla(*line).output

    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> object:
        if name.startswith("huggingface_hub"):
            raise ImportError(f"No module named {name!r}")
        return real(name, package)

    monkeypatch.setattr("gguf_mla.remote.repository.importlib.import_module", missing)
    answer = gguf_mla(*line)
    assert (answer.status, "Install it: pip install huggingface_hub" in answer.output) == (2, True)


# ------------------------------------------------------------------------------------------------------- many workers


def test_workers_send_parts_and_one_commit_shows_all(desk: Desk, tmp_path: Path) -> None:
    """Their notes are on a branch, which goes; nobody sees a part on the main branch before."""
    plan, store = tmp_path / "p.json", desk.net.store
    line = ("convert", hub.BUNDLED, desk.here / "m.gguf", "--type", "Q8_0", *SIZE, "--upload", ID)
    for words in (("plan", *line, "--out", plan), ("work", plan, "--rank", "1", "--of", "2"), ("finish", plan)):
        read = desk.reader.run(*words, "--quiet")
    assert (read.status, shown(desk)) == (2, {})
    assert "not all of the files are there" in read.said
    assert f"{ID}@gguf-mla-{min(desk.wanted)}" in store.repositories
    for words in (("work", plan), ("finish", plan)):
        read = desk.reader.run(*words, "--json")
        assert read.status == 0, read.said
        assert list(faults(json.loads(read.said), SCHEMA, SCHEMA)) == []
    assert shown(desk) == desk.digests
    assert [*store.repositories] == [ID]
    assert len(store.repositories[ID].commits) == 2
    assert all(store.sent[digest] == len(store.contents[digest]) for digest in desk.digests.values())
    page = store.repositories[ID].small["README.md"].decode()
    assert "gguf-mla convert" in page
    assert str(desk.here) not in page
    assert desk.left() == []
