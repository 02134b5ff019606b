"""What llama-imatrix makes of small models of every family: python -m tests.quantize.imatrix.families LLAMA_IMATRIX.

It writes `families-b11434.json` anew. An entry of a matrix is recorded as its counts, its shape and a sketch: products
with random signs, whose differences say how far two entries are apart without keeping either.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.container.reader import open_gguf
from gguf_mla.text.tokens import SAMPLE
from tests.support import hub
from tests.support.command import convert

if TYPE_CHECKING:
    from collections.abc import Mapping

RECORDED = Path(__file__).with_name("families-b11434.json")
CONTEXT, CHUNKS, SIGNS = 64, 16, 8
FAMILIES: dict[str, dict[str, Any]] = {
    "v2lite": {},
    "v3": {"num_nextn_predict_layers": 0},
    "v32": {"num_nextn_predict_layers": 0, "index_topk": CONTEXT},
}


def checkpoint(directory: Path, kind: str) -> Path:
    """Write the model of a family."""
    return hub.write(directory / kind, kind, tame=True, num_hidden_layers=3, **FAMILIES[kind])


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a matrix."""
    return {
        name: tensor.file.read(tensor.offset, tensor.nbytes).view(np.float32).reshape(tensor.shape)
        for name, tensor in open_gguf(path).tensors.items()
        if name.endswith((".in_sum2", ".counts"))
    }


def sketch(name: str, sums: np.ndarray) -> np.ndarray:
    """Return the products of sums with random signs, and their norm, float64 [SIGNS + 1]."""
    signs = np.random.PCG64(zlib.crc32(name.encode())).random_raw(SIGNS * sums.size).reshape(SIGNS, -1) & np.uint64(1)
    flat = sums.astype(np.float64).reshape(-1)
    return np.append((2.0 * signs - 1.0) @ flat, np.linalg.norm(flat))


def distance(found: list[float], expected: list[float]) -> float:
    """Return about how far the entries of two sketches are apart, in the norm of the expected one."""
    difference = np.subtract(found, expected)[:-1]
    return float(np.sqrt(np.mean(difference**2)) / expected[-1])


def recorded(matrix: Mapping[str, np.ndarray]) -> dict[str, dict[str, list[Any]]]:
    """Return what is kept of a matrix: of every entry its shape, its counts and its sketch."""
    found = {}
    for name, sums in matrix.items():
        entry, _, part = name.rpartition(".")
        if part == "in_sum2":
            counts = matrix[f"{entry}.counts"].reshape(-1).astype(int).tolist()
            digits = [float(f"{value:.9g}") for value in sketch(entry, sums)]
            found[entry] = {"shape": list(sums.shape), "counts": counts, "sketch": digits}
    return found


def main(program: str) -> None:
    """Record."""
    kept = {}
    with tempfile.TemporaryDirectory() as directory:
        for kind in FAMILIES:
            model, out = Path(directory) / f"{kind}.gguf", Path(directory) / f"{kind}.imatrix.gguf"
            convert(checkpoint(Path(directory), kind), model, "F32")
            line = [program, "-m", model, "-f", SAMPLE, "-o", out, "-c", CONTEXT, "--chunks", CHUNKS, "-fa", "off"]
            line += ["-ctk", "f32", "-ctv", "f32", "-t", 1]
            subprocess.run([*map(str, line)], check=True)
            kept[kind] = recorded(arrays(out))
    lines = [f'"{kind}": {json.dumps(entries)}' for kind, entries in kept.items()]
    RECORDED.write_text("{" + ",\n".join(lines) + "}\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
