"""What llama-imatrix collects of a small DeepSeek-V4 (llama-imatrix-v4.npz).

usage: python -m tests.quantize.imatrix.v4 --peer LLAMA_CPP/bin/llama-imatrix --work DIRECTORY

Its input is our F32 file of the checkpoint; the cache is F32, without flash attention. Of the sums the recording has
the norm of every 64 in turn, counts as they are. Chunks of 200 tokens are no whole number of windows of 128, so the
last tokens are in no entry of the heavily compressed layers.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import click
import numpy as np

from gguf_mla.container.reader import open_gguf
from gguf_mla.text.tokens import SAMPLE
from tests.support import v4
from tests.support.command import gguf_mla

RECORD = Path(__file__).with_name("llama-imatrix-v4.npz")
CONTEXT, CHUNKS, GROUP = 200, 3, 64


def summary(path: Path) -> dict[str, np.ndarray]:
    """Counts by name, and the norms of sums, GROUP at a time."""
    found = {}
    for name, tensor in open_gguf(path).tensors.items():
        values = tensor.file.read(tensor.offset, tensor.nbytes).view(np.float32)
        if name.endswith(".counts"):
            found[name] = values
        elif not name.endswith(".stats"):
            found[name] = np.linalg.norm(values.astype(float).reshape(-1, GROUP), axis=1).astype(np.float32)
    return found


@click.command()
@click.option("--peer", type=click.Path(exists=True), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True)
def main(peer: str, work: Path) -> None:
    v4.write(work / "v4-flash", "v4-flash")
    assert gguf_mla("convert", work / "v4-flash", work / "f32.gguf", "--type", "F32", "--quiet").status == 0
    size = f"-c {CONTEXT} -b {CONTEXT} -ub {CONTEXT} --chunks {CHUNKS}".split()
    exact = ["-fa", "off", "-ctk", "f32", "-ctv", "f32", "-t", "1", "--no-ppl"]
    files = ["-m", work / "f32.gguf", "-f", SAMPLE, "-o", work / "imatrix.gguf"]
    subprocess.run([peer, *files, *size, *exact], check=True)
    np.savez_compressed(RECORD, **summary(work / "imatrix.gguf"))


if __name__ == "__main__":
    main()
