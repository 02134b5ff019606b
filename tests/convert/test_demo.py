"""`gguf-mla demo` does the main job, and llama.cpp understands what comes out."""

from __future__ import annotations

import errno
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from convert.command import FAMILIES
from gguf_mla.container.reader import open_gguf
from gguf_mla.sources.checkpoint import open_checkpoint
from gguf_mla.synthetic import checkpoints, shapes
from tests.support.command import convert, gguf_mla

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.judges import Engine


@pytest.mark.engine
def test_the_demo_converts_and_generates(tmp_path: Path, judges: None) -> None:  # noqa: ARG001 - says when they are missing
    done = subprocess.run(
        [sys.executable, "-m", "gguf_mla", "demo", str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert [open_gguf(path).metadata["general.file_type"] for path in sorted((tmp_path / "out").iterdir())] == [32, 7]
    # A trained model continues Python with Python: both files go on inside the method that the prompt begins.
    continuations = done.stdout.split("llama.cpp, ")[1:]
    assert len(continuations) == 2
    assert all("self." in text.split("\n", 3)[2] and "=" in text for text in continuations)


def test_the_checkpoint_can_be_copied(tmp_path: Path) -> None:
    copied = gguf_mla("demo", "--copy", tmp_path / "here")
    assert copied.status == 0, copied.output
    assert len(open_checkpoint(tmp_path / "here").tensors) == 91
    assert "exists already" in gguf_mla("demo", "--copy", tmp_path / "here").output


def test_a_copy_that_cannot_be_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("convert.demo.shutil.copyfile", full)
    answer = gguf_mla("demo", "--copy", tmp_path / "here")
    assert (answer.status, "here: the disk is full" in answer.output) == (3, True), answer.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [("--copy",), ("--family", "v3", "--size", "6M"), ()])
def test_a_place_that_cannot_be_is_a_sentence(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "file").touch()
    answer = gguf_mla("demo", *options, tmp_path / "file" / "below" / "here")
    assert answer.status == 2
    assert "the output cannot be created (Not a directory)" in answer.output


STORED = {"v3": "FP8 128x128", "v32": "FP8 128x128", "kimi-k2": "INT4 group 32"}


@pytest.mark.engine
@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_model_of_each_family_is_converted_proven_and_runs(
    family: str, engine: Callable[[Path], Engine], tmp_path: Path
) -> None:
    size = 13_000_000 if "index_topk" in shapes.SHAPES[shapes.FAMILIES[family]] else 6_000_000
    answer = gguf_mla("demo", "--family", family, "--size", f"{size // 10**6}M", tmp_path / "model")
    assert answer.status == 0, answer.output
    checkpoint = open_checkpoint(tmp_path / "model")
    assert len(checkpoint.files) > 2
    assert STORED.get(family, "BF16") in {tensor.stored for tensor in checkpoint.tensors.values()}
    convert(tmp_path / "model", tmp_path / "model.gguf")
    parameters = sum(int(np.prod(t.shape)) for t in open_gguf(tmp_path / "model.gguf").tensors.values())
    assert parameters == pytest.approx(size, rel=0.25)  # a step of experts is the sixth of so small a model
    proof = gguf_mla("verify", tmp_path / "model", tmp_path / "model.gguf", "--context", 64, "--chunks", 1, "--quiet")
    assert proof.status == 0, proof.output
    bos = checkpoint.config["bos_token_id"]
    _, logprobs = engine(tmp_path / "model.gguf").next_logprobs(
        [bos, *range(300, 340)], checkpoint.config["vocab_size"]
    )
    assert np.isfinite(logprobs).all()
    assert -30 < logprobs.min() < -10  # logits spread by 2.5, as they were made
    assert logprobs.max() < -0.1


def test_every_family_can_be_asked_for() -> None:
    assert tuple(shapes.FAMILIES) == FAMILIES


def test_a_model_that_could_not_be_finished_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "_write_shard", full)
    answer = gguf_mla("demo", "--family", "v3", "--size", "6M", tmp_path / "model")
    assert answer.status == 3
    assert "the disk is full" in answer.output
    assert not list(tmp_path.iterdir())


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        assert gguf_mla("demo", "--family", "kimi-k2", "--size", "6M", tmp_path / name).status == 0
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--family", "v3", "--size", "1M"), "expected 4.9M to 1.3B parameters, found 1.0M"),
        (("--family", "v3", "--size", "700B"), "found 700.0B"),
        (("--family", "v3", "--size", "much"), "--size cannot be read"),
        (("--family", "v3", "--size", "6M", "."), "exists already"),
        (("--family", "v5"), "'v5' is not one of"),
        (("--size", "6M"), "--size belongs to --family"),
    ],
)
def test_what_cannot_be_made_is_said(
    options: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = gguf_mla("demo", *options)
    assert answer.status == 2
    assert words in answer.output
    assert not list(tmp_path.iterdir())
