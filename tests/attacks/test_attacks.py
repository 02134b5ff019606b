"""Hostile files are read rightly or refused with a sentence, with little work and in little memory."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.errors import InputError
from tests.attacks.mutated import ATTACKS
from tests.support.command import measure
from tests.support.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.attacks.handmade import Attack

MUTATIONS = 9_000
LIMIT_BYTES = 200_000_000
LIMIT_CALLS = 2_000_000  # of functions: four for each of half a million objects, the longest header of them all


@pytest.mark.parametrize(
    ("reader", "attack"), [pytest.param(*case, id=f"{case[0].__name__}: {case[1].name}") for case in ATTACKS]
)
def test_a_handmade_attack_is_refused(reader: Callable[[Path], Any], attack: Attack, tmp_path: Path) -> None:
    path = tmp_path / "hostile"
    attack.write(path)
    with pytest.raises(InputError, match=attack.words) as refusal, Work() as work:
        reader(path)
    assert work.calls < LIMIT_CALLS
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 70_000


@pytest.mark.slow
def test_thousands_of_changed_files_and_all_attacks_cost_little(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "tests.attacks.mutated", str(tmp_path), str(MUTATIONS), "0"]
    before = measure([*line[:4], "0", "0"], tmp_path / "before.json")
    after = measure(line, tmp_path / "after.json")
    assert after.status == 0, after.output
    outcome = json.loads(after.output)
    assert outcome["read"] + outcome["refused"] >= 8_500
    assert min(outcome["read"], outcome["refused"]) > 800
    assert outcome["calls"] < 10_000
    assert after.peak - before.peak < LIMIT_BYTES
