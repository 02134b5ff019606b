"""Whatever a kill, another process or a stranger does at any step of a run: nothing is lost, and nothing is half there.

`python -m tests.model.run` plays all single events at every step and thousands by chance; here is a part of them.
"""

from __future__ import annotations

import os
from itertools import chain, islice
from typing import TYPE_CHECKING

import pytest

from gguf_mla.files import output, platform
from gguf_mla.stream import journal
from tests.model.commit import Model, parse
from tests.model.run import play, shuffled
from tests.support.interleave import stepped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.model.commit import Interleaving

COUNT = int(os.environ.get("GGUF_MLA_INTERLEAVINGS", "60"))  # of single events, and as many of several


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    with stepped():
        return Model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def steps() -> Iterator[None]:
    with stepped():
        yield


def found(model: Model, order: Iterable[Interleaving], count: int) -> list[str]:
    """Play some and list what is wrong, each kind with the interleaving that shows it."""
    _, faults = play(model, order, count)
    return [f"{fault}: {example} ({times} times)" for fault, (times, example) in faults.items()]


def test_a_part_of_all_single_events(model: Model) -> None:
    assert found(model, shuffled(model, 0), COUNT) == []


def test_several_events_by_chance(model: Model) -> None:
    assert found(model, model.several(0), COUNT) == []


def test_a_kill_after_every_step(model: Model) -> None:
    kills = [one for one in model.singles() if one.events[0].action in ("kill", "torn")]
    assert found(model, kills, len(kills)) == []


def test_an_interleaving_reads_as_it_is_written(model: Model) -> None:
    for one in chain(islice(model.singles(), 0, None, 997), islice(model.several(1), 50)):
        assert parse(str(one)) == one


# ------------------------------------------------------------------------------------- the model finds what is planted


def shown(model: Model, action: str, ending: str, command: str = "same") -> list[str]:
    """What is wrong after single events of one kind, under names that end so, late in the run."""
    singles = [
        one
        for one in model.singles()
        if one.command == command and one.events[0].action == action and one.events[0].name.endswith(ending)
    ]
    return found(model, reversed(singles), 60)


def test_it_finds_a_file_that_is_named_without_a_look_whose_it_is(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "is_named", lambda *_: True)
    assert "same said 0 but at its end this is not its output: an output" in str(shown(model, "swap", ".gguf.partial"))


def test_it_finds_a_name_that_is_taken_without_leave(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "obstacle", lambda *_, **__: None)
    monkeypatch.setattr(platform, "name_new", os.replace)
    assert "what the stranger had put there was removed, as an output" in str(shown(model, "create", ".gguf"))


def test_it_finds_a_file_that_is_taken_back_before_the_lock(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    real = journal.Journal.__init__

    def early(self: journal.Journal, out: Path, stated: object, names: list[str], *rest: object, **named: bool) -> None:
        marks = journal.finished(out, len(model.right))
        for path in map(out.with_name, names):
            if journal.is_named_by(marks, path):
                path.rename(output.partial_path(path))
        real(self, out, stated, names, *rest, **named)

    monkeypatch.setattr(journal.Journal, "__init__", early)
    assert "same said 0 but at its end this is not its output" in str(shown(model, "runs", "same"))
