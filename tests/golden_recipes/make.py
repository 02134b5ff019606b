"""Write the golden choices of this directory with llama.cpp's own llama-quantize (see README.md).

usage: python tests/golden_recipes/make.py --peer LLAMA_CPP/bin/llama-quantize --work DIRECTORY [MODEL …]
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from typing import TYPE_CHECKING

from gguf_mla.container.values import Kind, Value, array, string, u32
from gguf_mla.container.writer import TensorSpec, lay_out
from tests.golden_recipes import table
from tests.golden_recipes.models import MODELS

if TYPE_CHECKING:
    from gguf_mla.recipes import Tensor

# [ 12/ 363] blk.0.attn_k_b.weight   - [ 128, 512, 4, 1], type =   bf16, size =  0.5 MiB ->  0.1 MiB (q5_0)
LINE = re.compile(
    r"^\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\S+), size = +\S+ MiB(?: -> +\S+ MiB \((\S+)\))?$", re.MULTILINE
)
IMATRIX = {
    "general.type": string("imatrix"),
    "imatrix.datasets": array(Kind.STRING, ["none"]),
    "imatrix.chunk_count": u32(1),
    "imatrix.chunk_size": u32(512),
}


def write_hollow(path: Path, metadata: dict[str, Value], tensors: list[Tensor]) -> Path:
    """A GGUF file whose tensors are a hole: deciding needs no weights, and 1.3 TB need no disk."""
    layout = lay_out(metadata, [TensorSpec(name, shape, str(stored)) for name, shape, stored in tensors])
    with path.open("wb") as file:
        file.write(layout.head)
        file.truncate(layout.size)
    return path


def write_imatrix(path: Path) -> Path:
    """One entry: llama-quantize only asks whether there is any before it encodes."""
    specs = [TensorSpec("blk.0.ffn_down.weight.in_sum2", (1, 512), "F32")]
    specs += [TensorSpec("blk.0.ffn_down.weight.counts", (1, 1), "F32")]
    layout = lay_out(IMATRIX, specs)
    with path.open("wb") as file:
        file.write(layout.head)
        for offset, values in zip(layout.offsets, (np.ones(512, "<f4"), np.ones(1, "<f4")), strict=True):
            file.seek(offset)
            file.write(values.tobytes())
        file.truncate(layout.size)
    return path


def ask(peer: Path, model: Path, arguments: list[str], target: str) -> table.Answer:
    line = [str(peer), "--dry-run", *arguments, str(model), target]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    if done.returncode:
        return table.Answer(None)
    said = done.stdout + done.stderr
    types = {name: (new or old).upper() for name, old, new in LINE.findall(said)}
    return table.Answer(types, "will require an imatrix" in said)


@click.command()
@click.option("--peer", type=click.Path(exists=True, path_type=Path), required=True, help="llama-quantize")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="for hollow model files")
@click.argument("models", nargs=-1)
def main(peer: Path, work: Path, models: tuple[str, ...]) -> None:
    """Ask the peer for every case of the models (default: all) and store its choices."""
    work.mkdir(parents=True, exist_ok=True)
    imatrix = write_imatrix(work / "imatrix.gguf")
    for name in models or MODELS:
        sizes = MODELS[name]
        tensors = sizes.tensors()
        file = write_hollow(work / f"{name}.gguf", sizes.metadata(), tensors)
        answers = {}
        for case in (case for case in table.cases() if case.model == name):
            importance = ["--imatrix", str(imatrix)] if case.importance else []
            answer = ask(peer, file, [*importance, *table.OPTIONS[case.options].arguments], case.target)
            assert answer.types is None or set(answer.types) == {tensor.name for tensor in tensors}, case
            answers[case.key] = answer
        table.Table(answers).save(name)
        file.unlink()
        refused = [key for key, answer in answers.items() if answer.types is None]
        click.echo(f"{name}: {len(tensors)} tensors, {len(answers)} runs, refused: {', '.join(refused) or 'none'}")


if __name__ == "__main__":
    main()
