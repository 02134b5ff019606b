"""A small DeepSeek-V4 as llama-quantize writes it: types and digests of all tensors (v4-bytes.json).

usage: python -m tests.golden_recipes.v4_bytes --peer LLAMA_CPP/bin/llama-quantize --work DIRECTORY

Its input is our F32 file of the checkpoint, with importance for every tensor that llama-quantize asks it for: the
program that collects it has none for two kinds of V4's, and llama-quantize stops there.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from gguf_mla.container.reader import open_gguf
from gguf_mla.container.values import Kind, array, string, u32
from gguf_mla.container.writer import TensorSpec, lay_out
from gguf_mla.synthetic import numbers
from tests.support import v4
from tests.support.command import convert

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORD = Path(__file__).with_name("v4-bytes.json")
TYPES = ("Q4_K_M", "Q2_K", "IQ2_XXS", "MXFP4_MOE")
FEW: dict[str, Any] = {
    "num_hidden_layers": 4, "n_routed_experts": 2, "num_experts_per_tok": 2, "num_hash_layers": 1, "index_n_heads": 4,
    "num_attention_heads": 2,
}  # fmt: skip
HEAD = {
    "general.type": string("imatrix"), "imatrix.datasets": array(Kind.STRING, ["none"]),
    "imatrix.chunk_count": u32(1), "imatrix.chunk_size": u32(512),
}  # fmt: skip


def model(directory: Path) -> Path:
    """The F32 file that both quantize."""
    convert(v4.write(directory / "v4", "v4-flash", **FEW), directory / "v4-f32.gguf", "F32")
    return directory / "v4-f32.gguf"


def importance(path: Path, source: Path, *, collected: bool = False) -> Path:
    """A matrix with importance for every weight of two dimensions or more.

    `collected`: as llama-imatrix has it, without those that it cannot see, and a row for each group of attn_output_a.
    """
    sums = dict(_sums(source))
    if collected:
        sums = {name: values for name, values in sums.items() if not ("_ape." in name or "output_hc_fn" in name)}
        for name in [name for name in sums if name.endswith("attn_output_a.weight.in_sum2")]:
            sums[name] = numbers.bell(name, 4, (1, 2 * sums[name].shape[1])) ** 2 + np.float32(0.1)
    layout = lay_out(HEAD, [TensorSpec(name, values.shape, "F32") for name, values in sums.items()])
    with path.open("wb") as file:
        file.write(layout.head)
        for offset, values in zip(layout.offsets, sums.values(), strict=True):
            file.seek(offset)
            file.write(values.tobytes())
        file.truncate(layout.size)
    return path


def _sums(source: Path) -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in open_gguf(source).tensors.items():
        if len(tensor.shape) > 1 and tensor.type == "F32":
            matrices = tensor.shape[0] if len(tensor.shape) > 2 else 1
            yield f"{name}.in_sum2", numbers.bell(name, 3, (matrices, tensor.shape[-1])) ** 2 + np.float32(0.1)
            yield f"{name}.counts", np.full((matrices, 1), 4, np.float32)


def record_of(path: Path) -> dict[str, list[str]]:
    """Type and digest of every tensor."""
    tensors = open_gguf(path).tensors
    return {n: [t.type, hashlib.sha256(t.read().tobytes()).hexdigest()[:16]] for n, t in sorted(tensors.items())}


@click.command()
@click.option("--peer", type=click.Path(exists=True, path_type=Path), required=True, help="llama-quantize")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="for model files")
def main(peer: Path, work: Path) -> None:
    """Have the peer quantize and store what came of it."""
    work.mkdir(parents=True)
    source = model(work)
    matrix = importance(work / "imatrix.gguf", source)
    records = {}
    for kind in TYPES:
        out = work / f"{kind}.gguf"
        subprocess.run([peer, "--imatrix", matrix, source, out, kind], check=True, capture_output=True)
        records[kind] = record_of(out)
    lines = [f'"{kind}": {{\n{_lines(record)}\n}}' for kind, record in records.items()]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _lines(record: dict[str, list[str]]) -> str:
    return ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in record.items())


if __name__ == "__main__":
    main()
