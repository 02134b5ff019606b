"""A matrix in parts, with workers of this process in the place of a cluster (test_on_ray.py has one)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.errors import MachineError
from gguf_mla.stream import on_ray
from quantize.imatrix import on_cluster
from tests.plan.contract import ok
from tests.plan.matrix import Matrix
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Cluster:
    """Does what it is sent for at once; `dying` has errands of which workers die."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.dying: list[int] = []

    def run(
        self, task: Any, told: str, jobs: Any, _needs: object, is_noted: Any, done: Any, reached: Callable[..., object]
    ) -> None:
        for job in jobs:
            self.sent.append(job.number)
            if job.number in self.dying:
                raise MachineError("3 workers have died of it")
            steps: Iterator[tuple[int, float]] = task(told, [job.number], 1, "cpu")
            for number, layers in steps:
                reached(number, layers)
            assert is_noted(job.number)
            done([job.number])


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster()
    monkeypatch.setattr(on_cluster, "connected", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(on_ray, "threads_of_a_worker", lambda _: 1)
    monkeypatch.setattr(on_ray, "room", lambda _: 3)
    monkeypatch.setattr(on_ray, "run", found.run)
    return found


@pytest.fixture
def matrix(small_model: Path, tmp_path: Path, cluster: Cluster) -> Matrix:  # noqa: ARG001 - it runs there
    return Matrix(small_model, tmp_path)


def test_a_matrix_is_that_of_its_parts(matrix: Matrix, cluster: Cluster, tmp_path: Path) -> None:
    """The perplexity is that of all chunks, to the rounding of products; its sums, too."""
    answer = matrix.run("--json")
    matrix.check(answer)
    assert cluster.sent == [1, 2, 3]
    whole = ok(gguf_mla(*matrix.line[:2], tmp_path / "whole.gguf", *matrix.line[3:], "--threads", 1, "--json"))
    here, there = (json.loads(told.output)["matrix"]["perplexity"] for told in (whole, answer))
    assert there["value"] == pytest.approx(here["value"], rel=1e-5)
    assert there["chunks"] == pytest.approx(here["chunks"], rel=1e-5)


def test_the_driver_goes_on_from_the_parts_that_are_what_their_notes_say(
    matrix: Matrix, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.dying = [3]
    assert "3 workers have died" in matrix.run("--quiet").output
    assert sorted(path.name for path in matrix.folder.glob("*.json")) == ["1-of-3.json", "2-of-3.json", "parts.json"]
    cluster.dying = []
    with monkeypatch.context() as patch:
        patch.setattr(on_cluster, "summed", None)
        assert matrix.run("--quiet").status != 0
    (matrix.folder / "1-of-3.json").write_text("torn")
    with (matrix.folder / "3-of-3.gguf").open("r+b") as part:
        part.seek(-8, os.SEEK_END)
        part.write(bytes(8))
    for more, said in (("--split-work", 2), "holds the parts of another run"), (("--process-output",), "another run"):
        answer = matrix.run(*more)
        assert (answer.status, said in answer.output) == (2, True), answer.output
    cluster.sent = []
    matrix.check(matrix.run("--quiet"))
    assert cluster.sent == [1, 3]


def test_what_an_earlier_run_has_left_is_thrown_away_where_that_is_asked_for(matrix: Matrix, cluster: Cluster) -> None:
    cluster.dying = [2]
    matrix.run("--quiet")
    (matrix.folder / "mine").write_text("mine")
    cluster.dying, cluster.sent = [], []
    ok(matrix.run("--no-resume", "--split-work", 2, "--quiet"))
    assert cluster.sent == [1, 2]
    assert [path.name for path in matrix.folder.iterdir()] == ["mine"]


def test_a_matrix_of_bad_weights_ends_with_the_usual_sentence(matrix: Matrix, tmp_path: Path) -> None:
    bad = shutil.copytree(matrix.line[1], tmp_path / "bad")
    spoil(bad, "model.layers.1.self_attn.o_proj.weight")
    line = ["imatrix", bad, matrix.out, *matrix.line[3:], "--threads", 1, "--quiet"]
    here, there = gguf_mla(*line), gguf_mla(*line, "--engine", "ray")
    assert here.status == there.status == 2, here.output
    assert there.output == here.output
    assert list(matrix.out.parent.iterdir()) == []


def spoil(checkpoint: Path, tensor: str) -> None:
    """Make the first weights of a tensor NaN, in whatever shard and form."""
    for shard in checkpoint.glob("*.safetensors"):
        content = bytearray(shard.read_bytes())
        begin = 8 + int.from_bytes(content[:8], "little")
        head = json.loads(content[8:begin])
        if tensor in head:
            at = begin + head[tensor]["data_offsets"][0]
            content[at : at + 16] = b"\xff" * 16
            shard.write_bytes(content)


def test_what_cannot_be_on_a_cluster_is_refused(matrix: Matrix) -> None:
    for more, said in (
        (("--split-work", "7"), "at most the 6 chunks"),
        (("--split-work", "1/3"), "at most the 6 chunks"),
        (("--min-tokens-per-expert", 1, "--more-text", "x"), "cannot go on in rounds"),
        (("--text", "-"), "standard input"),
    ):
        answer = matrix.run(*more)
        assert answer.status == 2
        assert said in answer.output
    assert list(matrix.out.parent.iterdir()) == []
