"""A proof that was stopped at any point goes on there, and says the same; each part of a file is read once."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_mla.cli.printing import as_json
from gguf_mla.errors import InputError, MachineError
from gguf_mla.files import input as files
from gguf_mla.files.records import Records
from tests.support import hub
from tests.support.command import convert, gguf_mla
from tests.verify.faults import Image
from verify import journal
from verify.job import Proof, Request, prove
from verify.levels import attention, logits, second_opinion, weights
from verify.report import terminal
from verify.sections import by_section

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAGE = 4096  # bytes
KINDS = ("v32", "glm-dsa")  # with a layer that predicts, and with one that attends to what the one before has chosen
EXACT: dict[str, Any] = {"exact": True, "threads": 2}


class Killed(BaseException):
    """The end of a process, as far as one that goes on can have it."""


@pytest.fixture(scope="module")
def q4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resume") / "tiny-Q4_K_M.gguf"
    convert(hub.BUNDLED, path, "Q4_K_M")
    return path


def said(proof: Proof) -> dict[str, Any]:
    """What a proof says, but for times."""
    content: dict[str, Any] = json.loads(as_json(terminal.content(proof)))
    return content | {"seconds": list(content["seconds"])}


def request(directory: Path, kind: str, resume: Path | None = None, **options: Any) -> Request:
    candidate = directory / f"{kind}-Q8_0.gguf"
    options = {"tokens": ids(directory), "chunks": 2, "context": 20, "resume": resume} | options
    return Request(directory / kind, candidate, **options)


def ids(directory: Path) -> Path:
    if not (directory / "ids.npy").exists():
        np.save(directory / "ids.npy", np.arange(100, 140))
    return directory / "ids.npy"


def of_bundled(q4: Path, **options: Any) -> Request:
    return Request(hub.BUNDLED, q4, tokens=ids(q4.parent), chunks=1, context=16, threads=2, **options)


def stopping(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let a process end when it has written so many lines and is about to write another."""
    left, append = iter(range(after)), Records.append

    def killed(self: Records, lines: Any) -> None:
        for line in lines:
            if next(left, None) is None:
                raise Killed
            append(self, [line])

    monkeypatch.setattr(Records, "append", killed)
    monkeypatch.setattr(journal, "SECONDS", -1.0)  # every line is written at once


@pytest.fixture(scope="module")
def expected(sparse_files: Path) -> dict[str, dict[str, Any]]:
    """What a proof says of each file."""
    return {kind: said(prove(request(sparse_files, kind, **EXACT))) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_proof_goes_on_and_says_the_same(
    kind: str, sparse_files: Path, tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(sparse_files, kind, tmp_path / "journal", **EXACT)
    tensors = len(expected[kind]["tensors"])
    for lines in (1, 2, tensors // 2, tensors):  # of some 2 · tensors + 5
        with monkeypatch.context() as patch:
            stopping(patch, lines)
            with pytest.raises(Killed):
                prove(asked)
    compared = counted(monkeypatch, weights, "compare")
    assert said(prove(asked)) == expected[kind]
    assert 0 < compared[0] < tensors // 2
    assert not (tmp_path / "journal").exists()


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    calls, function = [0], getattr(owner, name)

    def count(*arguments: Any) -> Any:
        calls[0] += 1
        return function(*arguments)

    monkeypatch.setattr(owner, name, count)
    return calls


@pytest.mark.parametrize("slots", [(0,), (0, 1)])
def test_a_damaged_state_costs_a_section_or_all_layers_and_nothing_else(
    slots: tuple[int, ...],
    sparse_files: Path,
    tmp_path: Path,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = request(sparse_files, "glm-dsa", tmp_path / "journal", **EXACT)
    with monkeypatch.context() as patch:
        stopping(patch, len(expected["glm-dsa"]["tensors"]))
        with pytest.raises(Killed):
            prove(asked)
    for slot in slots:
        path = tmp_path / "journal" / journal.STATES[slot]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    log = tmp_path / "journal" / "journal"
    log.write_bytes(log.read_bytes() + b'tensor {"level": "weig')
    assert said(prove(asked)) == expected["glm-dsa"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: {"context": 16}, "with other options"),
        (lambda _: {"exact": True}, "with other options"),
        (lambda path: os.utime(path / "glm-dsa-Q8_0.gguf"), "glm-dsa-Q8_0.gguf has changed since"),
        (lambda path: os.utime(path / "glm-dsa" / "config.json"), "config.json has changed since"),
        (lambda path: np.save(path / "ids.npy", np.arange(90, 148)), "ids.npy has changed since"),
    ],
)
def test_what_is_made_of_something_else_is_refused(
    change: Callable[[Path], dict[str, Any] | None], words: str, begun: Path, tmp_path: Path
) -> None:
    shutil.copytree(begun, tmp_path / "own")
    before = (tmp_path / "own" / "journal" / "journal").read_bytes()
    options = {"level": "weights"} | (change(tmp_path / "own") or {})
    with pytest.raises(InputError, match=words) as refused:
        prove(request(tmp_path / "own", "glm-dsa", tmp_path / "own" / "journal", **options))
    assert "delete this one to start over" in str(refused.value)
    assert (tmp_path / "own" / "journal" / "journal").read_bytes() == before


@pytest.fixture(scope="module")
def begun(sparse_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A proof that was stopped, with its inputs."""
    directory = tmp_path_factory.mktemp("begun")
    shutil.copytree(sparse_files / "glm-dsa", directory / "glm-dsa")
    shutil.copy2(sparse_files / "glm-dsa-Q8_0.gguf", directory)
    with pytest.MonkeyPatch.context() as patch:
        stopping(patch, 20)
        with pytest.raises(Killed):
            prove(request(directory, "glm-dsa", directory / "journal", level="weights"))
    return directory


def test_a_directory_of_others_is_left_alone(q4: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is not empty.*found notes\.txt"):
        prove(Request(hub.BUNDLED, q4, level="weights", resume=tmp_path / "mine"))
    (tmp_path / "mine" / "journal").write_text("dear diary\n")
    with pytest.raises(InputError, match="is not the journal of a proof"):
        prove(Request(hub.BUNDLED, q4, level="weights", resume=tmp_path / "mine"))
    assert (tmp_path / "mine" / "journal").read_text() == "dear diary\n"
    with pytest.raises(InputError, match="cannot be used for a journal"):
        prove(Request(hub.BUNDLED, q4, level="weights", resume=tmp_path / "no" / "where"))


def test_a_level_that_failed_is_tried_again(q4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = of_bundled(q4, resume=tmp_path / "journal")

    def fail(*_: Any) -> Any:
        raise MachineError("the GPU went away")

    with monkeypatch.context() as patch:
        patch.setattr(logits.Passes, "_finish", fail)
        assert prove(asked).failure is not None
    compared = counted(monkeypatch, attention.Attentions, "compare")
    found = prove(asked)
    assert (found.right, compared) == (True, [0])
    assert said(found) == said(prove(of_bundled(q4)))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_process_leaves_what_the_next_goes_on_from(q4: Path, tmp_path: Path) -> None:
    line = ["verify", hub.BUNDLED, q4, "--tokens", ids(q4.parent), "--chunks", "1", "--context", "16", "--json"]
    code = (
        "import os, signal\nfrom verify import journal\nfrom gguf_mla.__main__ import run\n"
        "through = journal.Journal.through\n"
        "def kill(self, *found):\n    through(self, *found)\n"
        "    if len(self.sections()) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "journal.Journal.through = kill\nrun()\n"
    )
    resumed = [*map(str, line), "--resume", str(tmp_path / "journal")]
    killed = subprocess.run([sys.executable, "-c", code, *resumed], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len((tmp_path / "journal" / "journal").read_bytes()) > 1000
    answers = [json.loads(gguf_mla(*each).output) for each in (resumed, line)]
    found, expected = (
        answer | {"elapsed": None, **{name: list(answer[name]) for name in ("seconds", "stages")}} for answer in answers
    )
    assert found == expected
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_an_interrupt_says_how_far_it_was_and_how_to_go_on(
    resume: bool, q4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(logits.Passes, "_embed", interrupt)
    options = ("--resume", tmp_path / "journal") if resume else ()
    answer = gguf_mla("verify", hub.BUNDLED, q4, "--tokens", ids(q4.parent), *options)
    assert answer.status == 130
    end = "Run the same command again to go on from there" if resume else "Run it with --resume DIR"
    assert re.match(rf"gguf-mla: error: interrupted; [0-9.]+ KiB of [0-9.]+ MiB were proven\. {end}", answer.output)
    assert (tmp_path / "journal").exists() == resume


def test_the_bar_counts_the_bytes_of_all_levels_once(q4: Path) -> None:
    told: list[tuple[int, int]] = []

    class Shown:
        def __init__(self, total: int, done: int) -> None:
            told.append((total, done))
            self.done = done

        def __enter__(self) -> Callable[[int], None]:
            return self.step

        def step(self, nbytes: int) -> None:
            assert nbytes >= 0
            self.done += nbytes
            told.append((told[0][0], self.done))

        def __exit__(self, *_: object) -> None:
            pass

    prove(of_bundled(q4), Shown)
    total = told[0][0]
    assert told[0] == (total, 0)
    assert told[-1] == (total, total)
    assert 2 * 0.9 * q4.stat().st_size < total < 3 * q4.stat().st_size


def test_what_comes_after_a_level_that_finds_something_wrong_counts_for_nothing(
    q4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake is in the last layer: by then the attention has failed, and the logits have seen two layers."""

    def fail(*_: Any) -> Any:
        raise MachineError("the GPU went away")

    image = Image.of(q4)
    image.change("blk.2.attn_output.weight", lambda x: x[::-1])
    wrong = image.write(tmp_path / "wrong.gguf")
    for step in ("compare", None):
        with monkeypatch.context() as patch:
            if step:
                patch.setattr(attention.Attentions, step, fail)
            proof = prove(replace(of_bundled(q4), candidate=wrong))
        assert [(finding.level, finding.subject) for finding in proof.findings] == [
            ("weights", "blk.2.attn_output.weight")
        ]
        assert (proof.failure, proof.attention, proof.layers, proof.scores) == (None, [], [], None)
        assert list(proof.seconds) == ["structure", "weights"]


class Cache:
    """Pages of files, of which as many are kept as fit into some memory; `missed` are bytes that had to be read."""

    def __init__(self, room: int) -> None:
        self.room, self.missed = room, dict[str, int]()
        self._pages: OrderedDict[tuple[str, int], None] = OrderedDict()

    def read(self, name: str, offset: int, count: int) -> None:
        for page in range(offset // PAGE, -(-(offset + count) // PAGE)):
            if (name, page) not in self._pages:
                self.missed[name] = self.missed.get(name, 0) + PAGE
            self._pages[name, page] = None
            self._pages.move_to_end((name, page))
            if len(self._pages) * PAGE > self.room:
                self._pages.popitem(last=False)


def test_each_file_is_read_once_by_all_levels(q4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With memory for a section of both files, and no more."""
    proof = prove(of_bundled(q4, level="structure"))
    assert proof.candidate is not None
    held = by_section(proof.candidate.weights.held, proof.candidate.weights.model)
    largest = max(sum(tensor.rows * tensor.shape[-1] for tensor in tensors) for tensors in held.values())
    cache, read_into = Cache(3 * largest), files.read_into  # 0.6 bytes a value and 2, of the embeddings

    def read(fd: int, view: memoryview, offset: int, path: Path) -> int:
        cache.read(path.name, offset, len(view))
        return read_into(fd, view, offset, path)

    monkeypatch.setattr(files, "read_into", read)
    monkeypatch.setattr(second_opinion, "of_reference", lambda *_: [])  # two rows of each tensor, before the first
    assert prove(of_bundled(q4, exact=True)).right
    for path in (q4, *hub.BUNDLED.glob("*.safetensors")):
        assert cache.missed[path.name] < 1.02 * path.stat().st_size + 10 * PAGE
