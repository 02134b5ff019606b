"""Hostile files are read rightly or refused with a sentence, in less than a second and 200 MB."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.errors import InputError
from tests.attacks.mutated import ATTACKS, LIMIT_SECONDS
from tests.support.command import measure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.attacks.handmade import Attack

MUTATIONS = 21_000
LIMIT_BYTES = 200_000_000


@pytest.mark.parametrize(
    ("reader", "attack"), [pytest.param(*case, id=f"{case[0].__name__}: {case[1].name}") for case in ATTACKS]
)
def test_a_handmade_attack_is_refused(reader: Callable[[Path], Any], attack: Attack, tmp_path: Path) -> None:
    path = tmp_path / "hostile"
    attack.write(path)
    begin = time.process_time()
    with pytest.raises(InputError, match=attack.words) as refusal:
        reader(path)
    assert time.process_time() - begin < LIMIT_SECONDS
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 70_000


def test_thousands_of_changed_files_and_all_attacks_cost_little(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "tests.attacks.mutated", str(tmp_path), str(MUTATIONS), "0"]
    before = measure([*line[:4], "0", "0"], tmp_path / "before.json")
    after = measure(line, tmp_path / "after.json")
    assert after.status == 0, after.output
    outcome = json.loads(after.output)
    assert outcome["read"] + outcome["refused"] >= 20_000
    assert min(outcome["read"], outcome["refused"]) > 2000
    assert outcome["slowest"] < LIMIT_SECONDS
    assert after.peak - before.peak < LIMIT_BYTES
