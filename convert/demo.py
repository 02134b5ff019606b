"""`gguf-mla demo`: the main job on the bundled checkpoint, from FP8 shards to tokens of a real engine."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gguf_mla.checkpoint import Checkpoint

CHECKPOINT = "tiny-deepseek-v3"
TYPES = ("BF16", "Q8_0")
PROMPT = "def __init__(self, name):\n    self."
TOKENS = 24


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), default=Path("demo-output"))
def demo(directory: Path) -> None:
    """Convert the bundled trained FP8 checkpoint into DIRECTORY and let llama.cpp continue a line of Python.

    The engine is used when it is installed: pip install 'gguf-mla[engine]'.
    """
    from gguf_mla.checkpoint import open_checkpoint  # noqa: PLC0415 - `--help` must not pay for numpy

    directory.mkdir(parents=True, exist_ok=True)
    source = open_checkpoint(bundled_checkpoint())
    click.echo(f"{source.directory.name}: {len(source.files)} shards, {len(source.tensors)} tensors\n")
    outputs = [_convert(source, kind, directory) for kind in TYPES]
    click.echo(_table(outputs))
    if find_spec("xllamacpp") is None:
        click.echo("\nllama.cpp is not installed, so nothing is generated: pip install 'gguf-mla[engine]'")
        return
    for output in outputs:
        click.echo(f"\nllama.cpp, {output.name}:\n{PROMPT}{_continuation(output)}")


def bundled_checkpoint() -> Path:
    """Return the directory of the bundled checkpoint."""
    return Path(str(files("gguf_mla"))) / "data" / CHECKPOINT


def _convert(source: Checkpoint, kind: str, directory: Path) -> Path:
    from convert.job import plan_conversion  # noqa: PLC0415
    from gguf_mla.stream import execute, single  # noqa: PLC0415

    [(plan, _)] = plan_conversion(source, [kind])
    path = directory / f"{CHECKPOINT}-{kind}.gguf"
    execute([single(plan, path)], source.tensors)
    return path


def _table(outputs: list[Path]) -> str:
    from gguf_mla import tables  # noqa: PLC0415
    from gguf_mla.container.reader import open_gguf  # noqa: PLC0415
    from gguf_mla.inspection import facts  # noqa: PLC0415

    rows = []
    for path in outputs:
        known = facts(open_gguf(path))
        total, parameters = known["tensor_bytes"], known["parameters"]
        bits = tables.bits_per_weight(total, parameters)
        rows.append((path, known["architecture"], known["layout"], tables.count(parameters), tables.size(total), bits))
    return tables.table(
        ("file", "architecture", "layout", "parameters", "tensors", "bits/weight"),
        rows,
        right="parameters,tensors,bits/weight",
    )


def _continuation(path: Path) -> str:
    """Return what llama.cpp writes after the prompt, always taking the likeliest token."""
    import xllamacpp  # noqa: PLC0415

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_predict = 256, TOKENS
    params.warmup, params.verbosity = False, -1
    answer = xllamacpp.Server(params).handle_completions({"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0.0})
    return str(answer["choices"][0]["text"])
