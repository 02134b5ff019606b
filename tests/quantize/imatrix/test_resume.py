"""Killed at any instant, the same command gives the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from gguf_mla.container.writer import lay_out
from gguf_mla.errors import InputError, MachineError
from gguf_mla.forward.place import Place
from quantize.imatrix import job
from quantize.imatrix.job import How, RunStopped
from tests.support import crash
from tests.support.hub import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from quantize.imatrix.job import Work


def test_killed_at_any_instant_a_run_goes_on_to_the_same_bytes(predicting: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "tests.quantize.imatrix.kills", str(predicting), str(tmp_path), "4"]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= 4


def test_in_memory_gives_the_same_bytes(made: Callable[..., bytes], undisturbed: bytes) -> None:
    assert made("memory.gguf", How(in_memory=True)) == undisturbed


def test_what_was_done_is_not_done_again(
    made: Callable[..., bytes], undisturbed: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stop_in_layer(1, monkeypatch)
    with pytest.raises(RunStopped) as stopped:
        made("m.gguf")
    assert (stopped.value.done, stopped.value.total) == (1, 3)
    monkeypatch.undo()
    ran = count_layers(monkeypatch)
    assert made("m.gguf") == undisturbed
    assert ran == [1, 2]
    assert not list(tmp_path.glob("*.partial"))


def test_what_was_done_before_the_first_layer_is_gone_on_from(
    made: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_layer(0, monkeypatch)
    with pytest.raises(RunStopped) as stopped:
        made("m.gguf")
    assert stopped.value.done == 0  # the embeddings are there
    with pytest.raises(RunStopped) as stopped:
        made("n.gguf", How(in_memory=True))
    assert stopped.value.done is None


@pytest.mark.parametrize("suffix", ["", ".states-1"])
def test_what_the_disk_lost_is_done_again(
    suffix: str, made: Callable[..., bytes], undisturbed: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stop_in_layer(1, monkeypatch)
    with pytest.raises(RunStopped):
        made("m.gguf")
    monkeypatch.undo()
    with (tmp_path / f"m.gguf{suffix}.partial").open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        end = file.read(1)
        file.seek(-64 if not suffix else 0, os.SEEK_END if not suffix else os.SEEK_SET)
        file.write(bytes([end[0] ^ 1]))
    assert made("m.gguf") == undisturbed


def test_other_tokens_do_not_go_on_with_it(made: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    stop_in_layer(1, monkeypatch)
    with pytest.raises(RunStopped):
        made("m.gguf")
    monkeypatch.undo()
    with pytest.raises(InputError, match="begun with other options"):
        made("m.gguf", prediction=False)


def test_another_device_does_not_go_on_with_it(work: Work) -> None:
    layout, here = lay_out({}, []), How()
    there = How(place=Place(torch.device("cuda")))
    assert job._identity(work, layout, here) == job._identity(work, layout, How(in_memory=True))
    assert job._identity(work, layout, here) != job._identity(work, layout, there)


def test_a_full_disk_loses_nothing(made: Callable[..., bytes], undisturbed: bytes) -> None:
    with crash.full_after(600_000), pytest.raises(MachineError, match=r"not enough free disk space|disk is full"):
        made("m.gguf")
    assert made("m.gguf") == undisturbed


def stop_in_layer(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = job.sweep.Layer.run

    def run(layer: job.sweep.Layer, *arguments: object) -> None:
        if layer.number == number:
            raise KeyboardInterrupt
        right(layer, *arguments)

    monkeypatch.setattr(job.sweep.Layer, "run", run)


def count_layers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    right, ran = job.sweep.Layer.run, []

    def run(layer: job.sweep.Layer, *arguments: object) -> None:
        ran.append(layer.number)
        right(layer, *arguments)

    monkeypatch.setattr(job.sweep.Layer, "run", run)
    return ran
