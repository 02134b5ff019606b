"""What the drivers are held against: the files of plain runs with one thread, made once for all test processes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.plan import contract
from tests.support import crash, hub
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Shared
    from tests.support.crash import Job


@pytest.fixture(scope="session")
def jobs(shared: Shared) -> dict[str, Job]:
    """One job of every kind, by name."""

    def write(directory: Path) -> None:
        (directory / "begin").mkdir()
        found = contract.jobs(directory / "begin")
        for kind, job in found.items():
            (out := directory / kind).mkdir()
            answer = contract.ok(gguf_mla(*contract.words(job, out), "--threads", "1"))
            (directory / f"{kind}.json").write_text(json.dumps(contract.rounded(answer)))

    directory = shared("plan", write)
    return contract.named(directory / "begin")


@pytest.fixture(scope="session")
def undisturbed(jobs: dict[str, Job], shared: Shared) -> dict[str, dict[str, bytes]]:
    """The files of every kind of run, by name."""
    directory = shared("plan", lambda _: None)
    return {kind: crash.content(directory / kind) for kind in jobs}


@pytest.fixture(scope="session")
def told(jobs: dict[str, Job], shared: Shared) -> dict[str, list[str]]:
    """What every kind of run tells of rounded scales."""
    directory = shared("plan", lambda _: None)
    return {kind: json.loads((directory / f"{kind}.json").read_text()) for kind in jobs}


@pytest.fixture(scope="session")
def small_model(shared: Shared) -> Path:
    """A checkpoint of two layers."""
    options = {"num_hidden_layers": 2, "n_routed_experts": 8}
    return shared("plan-v3", lambda directory: hub.write(directory / "v3", "v3", **options)) / "v3"
