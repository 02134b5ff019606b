"""`gguf-mla demo`: the main job on the bundled checkpoint, from FP8 shards to tokens of a real engine.

With --family, a small model of that family, to try the jobs on.
"""

from __future__ import annotations

import shutil
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convert.plan import plan_conversion
from gguf_mla import units
from gguf_mla.cli.inspect import facts
from gguf_mla.cli.table import table
from gguf_mla.container.reader import open_gguf
from gguf_mla.container.writer import lay_out
from gguf_mla.files.directories import make_directory, new_directory
from gguf_mla.files.guard import mark_of
from gguf_mla.files.input import InputFile
from gguf_mla.plan.outputs import single
from gguf_mla.sources.checkpoint import open_checkpoint
from gguf_mla.stream.execute import Resumption, execute
from gguf_mla.synthetic.shapes import parse_parameters
from gguf_mla.synthetic.small import write_small

if TYPE_CHECKING:
    from gguf_mla.plan.outputs import PlannedFile
    from gguf_mla.sources.checkpoint import Checkpoint

CHECKPOINT = "tiny-deepseek-v3"
TYPES = ("BF16", "Q8_0")
PROMPT = "def __init__(self, name):\n    self."
TOKENS = 24
OUTPUT = Path("demo-output")


def demo(directory: Path | None, family: str | None, size: str | None, copy: bool) -> None:
    """Convert the bundled checkpoint and have llama.cpp continue a text; with a family, write a small model of it."""
    if copy:
        _copy(directory or Path(CHECKPOINT), family)
        return
    if family is not None:
        _small(family, size or "50M", directory)
        return
    if size is not None:
        raise click.UsageError("--size belongs to --family.")
    _bundled(directory or OUTPUT)


def _copy(directory: Path, family: str | None) -> None:
    if family is not None:
        raise click.UsageError("--copy and --family exclude each other.")
    with new_directory(directory) as place:
        place.mkdir()
        for file in bundled_checkpoint().iterdir():
            shutil.copyfile(file, place / file.name)
    click.echo(f"{directory}: the bundled checkpoint\ngguf-mla convert {directory}")


def _small(family: str, size: str, directory: Path | None) -> None:
    out = directory or Path(f"{family}-{size}")
    parameters = write_small(family, parse_parameters(size), out)
    written = open_checkpoint(out)
    formats = dict.fromkeys(tensor.stored for tensor in written.tensors.values())
    nbytes = units.size(sum(file.size for file in written.files))
    click.echo(
        f"{out}: {units.count(parameters)} parameters, {len(written.files)} shards, {nbytes}, {', '.join(formats)}"
    )
    click.echo(f"gguf-mla convert {out}")


def _bundled(directory: Path) -> None:
    make_directory(directory)
    source = open_checkpoint(bundled_checkpoint())
    click.echo(f"{source.folder.path.name}: {len(source.files)} shards, {len(source.tensors)} tensors\n")
    outputs = [_convert(source, kind, directory) for kind in TYPES]
    click.echo(_table(outputs))
    if find_spec("xllamacpp") is None:
        click.echo("\nllama.cpp is not installed, so nothing is generated: pip install xllamacpp")
        return
    for output in outputs:
        click.echo(f"\nllama.cpp, {output.name}:\n{PROMPT}{_continuation(output)}")


def bundled_checkpoint() -> Path:
    """Return the directory of the bundled checkpoint."""
    return Path(str(files("gguf_mla"))) / "data" / CHECKPOINT


def _convert(source: Checkpoint, kind: str, directory: Path) -> Path:
    [(plan, _)] = plan_conversion(source, [kind])
    path = directory / f"{CHECKPOINT}-{kind}.gguf"
    output = single(plan, path)
    resumption = Resumption([Path(file.name) for file in source.files])
    execute([output], source.tensors, resumption=resumption, overwrite=_is_from_demo(output[0]))
    return path


def _is_from_demo(planned: PlannedFile) -> bool:
    """Whether the file that is there has the very head that a demo gives it."""
    if mark_of(planned.path) is None:
        return False
    head = lay_out(planned.metadata, [job.spec for job in planned.tensors]).head
    with InputFile(planned.path) as file:
        return file.read(0, min(file.size, len(head))).tobytes() == head


def _table(outputs: list[Path]) -> str:
    rows = []
    for path in outputs:
        known = facts(open_gguf(path))
        total, parameters = known["tensor_bytes"], known["parameters"]
        bits = units.bits_per_weight(total, parameters)
        rows.append((path, known["architecture"], known["layout"], units.count(parameters), units.size(total), bits))
    return table(
        ("file", "architecture", "layout", "parameters", "tensors", "bits/weight"),
        rows,
        right="parameters,tensors,bits/weight",
    )


def _continuation(path: Path) -> str:
    """Return what llama.cpp writes after the prompt, always taking the likeliest token."""
    import xllamacpp  # noqa: PLC0415 - optional

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_predict = 256, TOKENS
    params.warmup, params.verbosity = False, -1
    answer = xllamacpp.Server(params).handle_completions({"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0.0})
    return str(answer["choices"][0]["text"])
