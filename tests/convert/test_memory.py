"""Peak memory depends on threads and chunks, not on the size of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gguf_mla.stream import chunks
from tests.support import bulk
from tests.support.command import Measured, command, measure

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = (1, 11)  # a model of 36 MB as BF16, and one of 310 MB
CHUNK = 4 * chunks.CHUNK_VALUES  # bytes, as float32
HELD = 3 * CHUNK  # by a thread at most: its chunk as it is stored, as float32, and encoded
IDLE = 1 << 29  # bytes: Python, its modules, the compiled kernels


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "type_"), [("v3", "BF16"), ("v3fp8", "Q8_0")])
def test_peak_memory_does_not_grow_with_the_model(kind: str, type_: str, tmp_path: Path) -> None:
    small, large = (
        bulk.write(tmp_path / f"{layers}", kind, tokenizer="bundled", layers=layers, experts=8) for layers in LAYERS
    )
    for threads in (2, 16):
        peaks = [converted(model, tmp_path, type_, threads).peak for model in (small, large)]
        # The small model may have too few chunks for all threads to hold one at the same time.
        assert peaks[1] - peaks[0] < threads * HELD, (threads, peaks)
        assert peaks[1] < IDLE + threads * HELD


def converted(checkpoint: Path, directory: Path, type_: str, threads: int) -> Measured:
    """Convert a checkpoint in a process of its own."""
    out = directory / "out.gguf"
    line = command("convert", checkpoint, out, "--type", type_, "--threads", threads, "--quiet")
    measured = measure(line, directory / "report.json")
    assert measured.status == 0, measured.output
    out.unlink()
    return measured
