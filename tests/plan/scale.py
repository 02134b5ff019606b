"""How DeepSeek-V3 in IQ3_XXS scales, by the costs in its plan: python -m tests.plan.scale

The checkpoint is headers and holes, the matrix all ones; nothing is computed. It takes half a minute.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import numpy as np

from convert.plan import plan_conversion
from gguf_mla.sources.checkpoint import open_checkpoint
from gguf_mla.synthetic import checkpoints, shapes
from tests.support.command import gguf_mla
from tests.support.matrices import write_imatrix

TYPE = "IQ3_XXS"


def matrix(checkpoint: Path, path: Path) -> Path:
    """Write a matrix of ones, a row for each expert."""
    [(plan, _)] = plan_conversion(open_checkpoint(checkpoint), ["BF16"])
    wide = [job for job in plan.tensors if len(job.shape) > 1]
    one = np.ones((1, 1), np.float32)
    shapes = {job.name: (math.prod(job.shape[:-2]), job.shape[-1]) for job in wide}
    entries = {name: (np.broadcast_to(one, shape), np.ones(shape[0], np.float32)) for name, shape in shapes.items()}
    write_imatrix(path, entries, datasets=["ones"], chunk_count=1, chunk_size=512)
    return path


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        checkpoints.write(place / "DeepSeek-V3", shapes.SHAPES["deepseek-v3"], checkpoints.hollow)
        ones = matrix(place / "DeepSeek-V3", place / "ones.gguf")
        file = place / "plan.json"
        line = ("convert", place / "DeepSeek-V3", place / "out.gguf", "--type", TYPE, "--imatrix", ones)
        begin = time.monotonic()
        answer = gguf_mla("plan", *line, "--out", file, "--quiet")
        assert answer.status == 0, answer.output
        print(f"planned in {time.monotonic() - begin:.1f} s, {file.stat().st_size / 1e6:.1f} MB")
        print(gguf_mla("plan", "show", file, "--workers", "16,64,256,512,1024").output)


if __name__ == "__main__":
    main()
