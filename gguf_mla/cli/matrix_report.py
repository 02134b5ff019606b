"""What `gguf-mla inspect` says of an importance matrix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import click

from gguf_mla.cli.document import answer
from gguf_mla.container.writer import MAGIC
from gguf_mla.files.input import InputFile
from gguf_mla.quoting import NAME, TEXT, listed, quoted

if TYPE_CHECKING:
    from gguf_mla.files.readable import AnyPath

MATRIX, PART = KINDS = ("imatrix", "imatrix-part")  # as general.type has them


def is_dat(file: AnyPath) -> TypeGuard[Path]:
    """Whether a file of this machine is an importance matrix in the older form, which only its name says."""
    if not isinstance(file, Path) or file.suffix != ".dat" or not file.is_file():
        return False
    with InputFile(file) as opened:
        return opened.read(0, min(4, opened.size)).tobytes() != MAGIC


def summary(file: Path, kind: str) -> dict[str, Any]:
    """Return what is in a matrix, or a part of one, as JSON has it; InputError for one that is not sound."""
    from gguf_mla.importance.matrix import read_imatrix  # noqa: PLC0415 - numpy is not needed for other files
    from gguf_mla.importance.partial import open_part  # noqa: PLC0415 - numpy again

    if kind == PART:
        part = open_part(file)
        return {
            "file": str(file), "kind": "part of an importance matrix", "tensors": len(part.tensors),
            "chunks": part.about.chunks, "of_chunks": part.about.total, "chunk_size": part.about.chunk_size,
            "datasets": list(part.about.datasets),
        }  # fmt: skip
    matrix = read_imatrix([file], literal=True)
    return {
        "file": str(file), "kind": "importance matrix", "tensors": len(matrix.names), "chunks": matrix.chunk_count,
        "chunk_size": matrix.chunk_size, "datasets": list(matrix.datasets),
        "unseen": sum(matrix.unseen(matrix.names).values()),
    }  # fmt: skip


def show(file: Path, kind: str = MATRIX, *, as_json: bool) -> None:
    """Print what is in it."""
    known = summary(file, kind)
    if as_json:
        answer(inputs=[file], matrix=known)
    else:
        click.echo(text(known))


def text(known: dict[str, Any]) -> str:
    """Return the same for people."""
    of = f" of {known['of_chunks']}" if "of_chunks" in known else ""
    lines = [
        f"{quoted(known['file'], TEXT)}: {known['kind']}",
        f"tensors       {known['tensors']}",
        f"chunks        {known['chunks']}{of}, each of {known['chunk_size']} tokens",
        f"made from     {quoted(listed(known['datasets']) or 'a text that it does not name', NAME)}",
    ]
    if "unseen" in known:
        lines.append(
            f"not seen      {known['unseen']} experts, all tensors together; `gguf-mla imatrix show` shows them"
        )
    return "\n".join(lines)
