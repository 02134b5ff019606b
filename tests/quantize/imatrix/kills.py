"""Runs that are killed, each in a fork: python -m tests.quantize.imatrix.kills CHECKPOINT DIRECTORY COUNT.

A process of its own, because torch's threads are not in a fork: here there never are any.
"""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from gguf_mla.forward.opening import open_weights
from quantize.imatrix.asked import Wanted, work_of
from quantize.imatrix.job import How, collect
from tests.support import crash

LAST = 160  # the number of an operation on the disk that no run comes to


def main(checkpoint: Path, directory: Path, count: int) -> None:
    """Kill so many runs at random operations on the disk; each goes on to the same bytes."""
    torch.set_num_threads(1)
    tokens = np.random.default_rng(5).integers(5, 2000, (2, 12))
    work = work_of(open_weights(checkpoint), tokens, Wanted(output=True, prediction=True, perplexity=False), [])
    undisturbed = collect(work, directory / "whole.gguf", How()).path.read_bytes()
    killed, instants, out = 0, random.Random(count), directory / "m.gguf"
    for _ in range(count):
        for at in (instants.randint(1, LAST), instants.randint(1, LAST)):  # killed once, and going on once more
            killed += crash.killed_at(at, lambda: collect(work, out, How())) == -signal.SIGKILL
            if out.exists():
                break
        if {path.name for path in directory.iterdir()} != {"whole.gguf", out.name}:  # not done, or not put in order
            collect(work, out, How())
        assert out.read_bytes() == undisturbed
        out.unlink()
        assert [path.name for path in directory.iterdir()] == ["whole.gguf"]
    print(f"{killed} killed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
