"""What every way of running the work has to keep: threads of one process, ranks in any order, a Ray cluster."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest

from gguf_mla.container.reader import open_gguf
from tests.support import crash, hub
from tests.support.command import Answer, convert, gguf_mla
from tests.support.crash import Job
from tests.support.hub import BUNDLED
from tests.support.legacy import write_variant
from tests.support.matrices import write_imatrix

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("convert", "copy", "repack", "split", "upgrade")
SIZE = "300K"  # of a job: a few tensors of the small models here


def jobs(directory: Path) -> dict[str, Job]:
    """Make what the jobs begin with: a GGUF file, INT4 weights, a legacy file with its importance matrix."""
    convert(BUNDLED, directory / "quantized.gguf", "Q8_0")
    hub.write(directory / "packed", "kimi-int4", num_hidden_layers=2, n_routed_experts=4)
    convert(BUNDLED, directory / "plain.gguf", "BF16")
    write_variant(directory / "plain.gguf", directory / "legacy.gguf", "legacy")
    shapes = {t.name: t.shape for t in open_gguf(directory / "legacy.gguf").tensors.values() if ".attn_kv_b." in t.name}
    entries = {name: (np.ones((1, shape[-1])), np.ones(1)) for name, shape in shapes.items()}
    write_imatrix(directory / "matrix.gguf", entries, datasets=["ones"], chunk_count=1, chunk_size=512)
    return named(directory)


def named(directory: Path) -> dict[str, Job]:
    """One job of each of KINDS, on the files that `jobs` has made; they write into {out}."""
    several = ("--type", "Q4_K_M", "--type", "Q8_0", "--split-max-tensors", "26", "--checksums")
    lines = {
        "convert": ("convert", BUNDLED, "{out}/out.gguf", "--type", "Q4_K_M"),
        "copy": ("quantize", directory / "quantized.gguf", "{out}/out.gguf", "COPY"),
        "repack": ("convert", directory / "packed", "{out}/out.gguf"),
        "split": ("convert", BUNDLED, "{out}", *several),
        "upgrade": ("upgrade", directory / "legacy.gguf", "{out}/o.gguf", "--imatrix", directory / "matrix.gguf"),
    }
    return {kind: Job(tuple(map(str, (*line, "--quiet")))) for kind, line in lines.items()}


def words(job: Job, out: Path) -> list[str]:
    """The words of a command that writes into a directory."""
    return [argument.format(out=out) for argument in job.arguments]


def plan(job: Job, out: Path, file: Path, *more: object) -> Answer:
    """Plan a command, in small jobs."""
    name, *rest = words(job, out)
    return gguf_mla("plan", name, *rest, "--out", file, "--job-size", SIZE, *more)


def ok(answer: Answer) -> Answer:
    assert answer.status == 0, answer.output
    return answer


def rounded(answer: Answer) -> list[str]:
    """What an answer tells of rounded scales."""
    return re.findall("warning: .* blocks of 32 weights .*", answer.output)


class Contract:
    """The tests; a driver says how a command is run to its end, and its answer is that of the last process."""

    left: ClassVar[set[str]] = set()  # after a bad weight

    def run(self, job: Job, out: Path, scratch: Path) -> Answer:
        """Run a command, which writes into `out`."""
        raise NotImplementedError

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_bytes_are_those_of_one_thread(
        self,
        kind: str,
        jobs: dict[str, Job],
        undisturbed: dict[str, dict[str, bytes]],
        told: dict[str, list[str]],
        tmp_path: Path,
    ) -> None:
        (out := tmp_path / "out").mkdir()
        answer = ok(self.run(jobs[kind], out, tmp_path))
        assert crash.content(out) == undisturbed[kind]
        assert rounded(answer) == told[kind]
        assert bool(told[kind]) == (kind == "repack")

    def test_a_bad_weight_ends_everything_with_the_usual_sentence(self, pristine: Path, tmp_path: Path) -> None:
        bad = shutil.copytree(pristine, tmp_path / "bad")
        shard = max(bad.glob("*.safetensors"))
        shard.write_bytes(shard.read_bytes()[:-40] + b"\xff" * 40)
        (out := tmp_path / "out").mkdir()
        job = Job(("convert", str(bad), "{out}/out.gguf", "--type", "Q8_0", "--quiet"))
        answer = self.run(job, out, tmp_path)
        assert answer.status == 2, answer.output
        said = "lm_head.weight: has a weight that is not a finite number (expected finite weights, found NaN or Inf at"
        assert said in answer.output
        assert {path.name for path in out.iterdir()} == self.left
