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
    from gguf_mla.container.reader import GgufFile
    from gguf_mla.files.readable import AnyPath
    from gguf_mla.importance.matrix import Imatrix

MATRIX, PART = KINDS = ("imatrix", "imatrix-part")  # as general.type has them


def is_dat(file: AnyPath) -> TypeGuard[Path]:
    """Whether a file of this machine is an importance matrix in the older form, which only its name says."""
    if not isinstance(file, Path) or file.suffix != ".dat" or not file.is_file():
        return False
    with InputFile(file) as opened:
        return opened.read(0, min(4, opened.size)).tobytes() != MAGIC


def show_dat(file: Path, *, as_json: bool) -> None:
    """Print what is in a matrix of the older form; InputError for one that is not sound."""
    from gguf_mla.importance.matrix import read_imatrix  # noqa: PLC0415 - numpy is not needed for other files

    _show(file, _of_matrix(file, read_imatrix([file], literal=True)), as_json=as_json)


def show(opened: GgufFile, file: Path, *, as_json: bool) -> None:
    """Print what is in a matrix or a part of one, opened from `file`; InputError for one that is not sound."""
    is_part = opened.metadata["general.type"] == PART
    _show(file, _of_part(opened, file) if is_part else _of_gguf(opened, file), as_json=as_json)


def _of_gguf(opened: GgufFile, file: Path) -> dict[str, Any]:
    from gguf_mla.importance.gguf import contents_of  # noqa: PLC0415 - numpy again
    from gguf_mla.importance.matrix import as_stored  # noqa: PLC0415 - numpy again

    return _of_matrix(file, as_stored(contents_of(opened, file)))


def _of_part(opened: GgufFile, file: Path) -> dict[str, Any]:
    from gguf_mla.importance.partial import part_of  # noqa: PLC0415 - numpy again

    part = part_of(opened, file)
    return {
        "file": str(file), "kind": "part of an importance matrix", "tensors": len(part.tensors),
        "chunks": part.about.chunks, "of_chunks": part.about.total, "chunk_size": part.about.chunk_size,
        "datasets": list(part.about.datasets),
    }  # fmt: skip


def _of_matrix(file: Path, matrix: Imatrix) -> dict[str, Any]:
    return {
        "file": str(file), "kind": "importance matrix", "tensors": len(matrix.names), "chunks": matrix.chunk_count,
        "chunk_size": matrix.chunk_size, "datasets": list(matrix.datasets),
        "unseen": sum(matrix.unseen(matrix.names).values()),
    }  # fmt: skip


def _show(file: Path, known: dict[str, Any], *, as_json: bool) -> None:
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
