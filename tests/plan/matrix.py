"""A matrix that a cluster makes in three parts, and what the parts of one process come to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.plan.contract import ok
from tests.support.command import Answer, gguf_mla

if TYPE_CHECKING:
    from pathlib import Path


class Matrix:
    """A command that makes a matrix of a small model in three parts, and what the parts of one process come to."""

    def __init__(self, model: Path, place: Path) -> None:
        self.out, ids = place / "out" / "m.gguf", place / "ids.npy"
        self.out.parent.mkdir()
        np.save(ids, np.random.default_rng(5).integers(5, 2000, 6 * 24))
        self.line = ["imatrix", model, self.out, "--tokens", ids, "--context", 24]
        parts = [place / f"{part}.gguf" for part in (1, 2, 3)]
        for number, part in enumerate(parts, 1):
            share = ("--split-work", f"{number}/3", "--threads", 1, "--quiet")
            ok(gguf_mla("imatrix", model, part, *self.line[3:], *share))
        ok(gguf_mla("imatrix", "merge", place / "right.gguf", *parts))
        self.right = (place / "right.gguf").read_bytes()
        self.folder = self.out.with_name("m.gguf.parts")

    def run(self, *more: object) -> Answer:
        return gguf_mla(*self.line, "--engine", "ray", "--threads", 1, *more)

    def check(self, answer: Answer) -> None:
        ok(answer)
        assert self.out.read_bytes() == self.right
        assert [path.name for path in self.out.parent.iterdir()] == ["m.gguf"]
