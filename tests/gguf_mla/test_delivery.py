"""Files of a run go to a sink as each is complete: two on the disk at most, and none is made twice."""

from __future__ import annotations

import json
import threading
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from gguf_mla.cli import launch
from gguf_mla.errors import MachineError
from gguf_mla.stream.books import NoJournal
from gguf_mla.stream.delivery import Delivery
from tests.support import hub
from tests.support.command import Answer, gguf_mla
from tests.support.uploading import Shelf

if TYPE_CHECKING:
    from pathlib import Path

SIZE = "1500K"  # of a part: seven of them
BLOCK = 4096  # of the disk, that the beginnings of files take which nothing else was written to


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The parts of two types as a run without a sink writes them."""
    place = tmp_path_factory.mktemp("wanted")
    assert convert(place, "--type", "Q8_0", "--type", "Q4_K_M").status == 0
    return {path.name: path.read_bytes() for path in place.iterdir()}


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    found = Shelf(tmp_path / "shelf")
    found.directory.mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(launch.sending, "sink", lambda _job, _options: found)
    return found


def convert(place: Path, *options: object) -> Answer:
    return gguf_mla("convert", hub.BUNDLED, f"{place}/m-{{type}}.gguf", "--split-max-size", SIZE, *options)


def sent(shelf: Shelf) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in shelf.directory.iterdir()}


def only(wanted: dict[str, bytes], word: str) -> dict[str, bytes]:
    return {name: content for name, content in wanted.items() if word in name}


@pytest.mark.parametrize("threads", [1, 3])
def test_no_part_is_begun_before_the_one_before_the_last_has_gone(
    tmp_path: Path, shelf: Shelf, wanted: dict[str, bytes], threads: int
) -> None:
    parts = only(wanted, "Q8_0")
    assert len(parts) > 4
    assert convert(tmp_path / "here", "--type", "Q8_0", "--threads", threads).status == 0
    assert sent(shelf) == parts
    assert sorted(shelf.taken) == shelf.shown == sorted(parts)
    turns = [shelf.taken.index(name) for name in shelf.shown]
    assert all(first < third for first, third in zip(turns, turns[2:], strict=False))  # two may change places
    sizes = [len(parts[name]) for name in sorted(parts)]
    assert shelf.most <= max(a + b for a, b in pairwise(sizes)) + len(parts) * BLOCK
    assert list((tmp_path / "here").iterdir()) == []


def test_a_run_goes_on_after_the_parts_that_the_sink_has(
    tmp_path: Path, shelf: Shelf, wanted: dict[str, bytes]
) -> None:
    shelf.fails = 3
    stopped = convert(tmp_path / "here", "--type", "Q8_0", "--type", "Q4_K_M")
    assert (stopped.status, "the shelf is full" in stopped.output, shelf.shown) == (3, True, [])
    first, shelf.fails = {*shelf.taken}, None
    answer = convert(tmp_path / "here", "--type", "Q8_0", "--type", "Q4_K_M", "--json")
    assert answer.status == 0, answer.output
    assert sent(shelf) == wanted
    assert len(first) == 3
    assert len(shelf.taken) == len({*shelf.taken}) == len(wanted)  # none was taken twice
    assert shelf.shown == sorted(wanted)
    assert json.loads(answer.output)["run"]["taken_over"] > 0


def test_what_the_sink_has_lost_is_made_again(tmp_path: Path, shelf: Shelf, wanted: dict[str, bytes]) -> None:
    shelf.fails = 3
    assert convert(tmp_path / "here", "--type", "Q8_0").status == 3
    (shelf.directory / shelf.taken[1]).unlink()
    shelf.fails = None
    assert convert(tmp_path / "here", "--type", "Q8_0").status == 0
    assert sent(shelf) == only(wanted, "Q8_0")


def test_files_that_are_kept_are_named_and_sent(tmp_path: Path, shelf: Shelf, wanted: dict[str, bytes]) -> None:
    shelf.keeps = True
    assert convert(tmp_path / "here", "--type", "Q8_0", "--upload", "me/x", "--keep", "--checksums").status == 0
    assert sent(shelf) == only(wanted, "Q8_0")
    here = {path.name for path in (tmp_path / "here").iterdir()}
    assert here == {*only(wanted, "Q8_0"), *(f"{name}.sha256" for name in only(wanted, "Q8_0"))}


def test_a_part_without_tensors_and_a_matrix_go_too(tmp_path: Path, shelf: Shelf) -> None:
    assert convert(tmp_path / "here", "--type", "Q8_0", "--no-tensor-first-split").status == 0
    assert len(shelf.taken) == len({*shelf.taken}) == len(shelf.shown)
    assert any("00001-of" in name for name in shelf.taken)


def test_what_is_stopped_with_a_worker_does_not_hide_its_error(
    tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part on its way ends before the error is heard of that has ended it."""
    stopped = threading.Event()

    def taken(_path: Path, _built: Path) -> NoReturn:
        stopped.wait(5)
        raise RuntimeError("what is on its way is stopped")

    monkeypatch.setattr(shelf, "take", taken)
    monkeypatch.setattr(shelf, "stop", stopped.set)
    path = tmp_path / "m.gguf"
    goal: Any = SimpleNamespace(planned=[SimpleNamespace(path=path, tensors=())], places=[0])
    file: Any = SimpleNamespace(final=path, path=path, finish=lambda: None)
    saver: Any = SimpleNamespace(save=lambda: None)
    delivery = Delivery(goal, [file], saver, NoJournal(), shelf)
    with pytest.raises(MachineError, match="the worker has failed"):
        _end_by(delivery, MachineError("the worker has failed"))


def _end_by(delivery: Delivery, error: Exception) -> NoReturn:
    with delivery:
        delivery.stop()
        delivery._thread.join(5)
        delivery.wait()
        raise error
    raise AssertionError("it was swallowed")


def test_room_is_needed_for_two_parts_only(
    tmp_path: Path, shelf: Shelf, wanted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = only(wanted, "Q8_0")
    monkeypatch.setattr("gguf_mla.files.output.free_bytes", lambda _: sum(map(len, parts.values())) // 2)
    assert convert(tmp_path / "here", "--type", "Q8_0").status == 0
    shelf.keeps = True
    refused = convert(tmp_path / "here", "--type", "Q8_0")
    assert (refused.status, "not enough free disk space" in refused.output) == (3, True)
