"""What `gguf-mla imatrix show`, `merge` and `convert` do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from gguf_mla.cli.document import answer
from gguf_mla.errors import InputError
from gguf_mla.files.guard import check_apart
from gguf_mla.importance.dat import DatFile
from gguf_mla.importance.entries import Made
from gguf_mla.importance.gguf import MatrixFile, stored_shape, write_matrix
from gguf_mla.importance.matrix import Imatrix, read_imatrix
from gguf_mla.importance.names import HEADS, kind_of
from gguf_mla.importance.partial import PartFile, is_part, joined, open_part
from quantize.imatrix import coverage, statistics
from quantize.imatrix.written import stored, summed, total

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gguf_mla.importance.entries import Entry
    from gguf_mla.importance.gguf import Written
    from gguf_mla.importance.partial import Part

LEGACY, VALUES = "attn_kv_b", "attn_v_b"


def show(files: tuple[Path, ...], tensors: bool, report: Path | None, as_json: bool) -> None:
    """Print the coverage and the statistics of a matrix; several files are shown as one."""
    matrix = read_imatrix(files, literal=True)
    covered = coverage.of_matrix(matrix)
    found = statistics.of_matrix(matrix) if tensors or as_json else []
    if report is not None:
        coverage.write_page(report, covered, ", ".join(file.name for file in files), files)
    if as_json:
        answer(inputs=files, matrix=_summary(matrix, covered, found))
        return
    click.echo(_head(matrix))
    if covered.layers:
        click.echo("\n" + coverage.text(covered))
    if tensors:
        click.echo("\n" + statistics.text(found))


def _head(matrix: Imatrix) -> str:
    names = ", ".join(matrix.datasets) or "a text that it does not name"
    files = ", ".join(str(path) for path in matrix.files)
    return (
        f"{files}: importance of {len(matrix.names)} tensors, from {matrix.chunk_count} chunks of {matrix.chunk_size} "
        f"tokens of {names}"
    )


def _summary(matrix: Imatrix, covered: coverage.Coverage, found: Sequence[statistics.Statistics]) -> dict[str, Any]:
    return {
        "datasets": list(matrix.datasets),
        "chunks": matrix.chunk_count,
        "chunk_size": matrix.chunk_size,
        "experts": coverage.as_data(covered),
        "tensors": [statistics.as_data(entry) for entry in found],
    }


def merge(out: Path, files: tuple[Path, ...], overwrite: bool) -> None:
    """Add matrices, or parts of one."""
    check_apart([out], [], files)
    parts = [file for file in files if is_part(file)]
    if parts and len(parts) < len(files):
        other = next(file for file in files if file not in parts)
        raise InputError("is a matrix, and parts of one cannot be added to it", file=other)
    content = _of_parts([open_part(file) for file in files]) if parts else _of_matrices(files)
    write_matrix(out, content, overwrite=overwrite)


def _of_parts(parts: Sequence[Part]) -> Written:
    """Return the sum of parts: a matrix where no chunk is missing, a part otherwise."""
    about = joined(parts)
    if about.is_whole:
        return summed(parts, "gguf")
    missing = about.total - about.chunks
    click.echo(f"{missing} of {about.total} chunks are missing, so this is a part again", err=True)
    return PartFile(about, parts[0].shapes(), partial(total, parts))


def _of_matrices(files: Sequence[Path]) -> Written:
    matrix = read_imatrix(files, literal=True)
    return MatrixFile(_made(matrix), datasets=sorted(set(matrix.datasets)), **_sizes(matrix))


def _sizes(matrix: Imatrix) -> dict[str, int]:
    return {"chunk_count": matrix.chunk_count, "chunk_size": matrix.chunk_size, "predictors": matrix.predictors}


def _made(matrix: Imatrix) -> dict[str, Made]:
    return {
        name: Made(
            stored_shape(matrix.shape(name)), matrix.counts(name), 2 + matrix.has_plain(name),
            partial(_whole, matrix, name),
        )
        for name in matrix.names
    }  # fmt: skip


def _whole(matrix: Imatrix, name: str) -> Entry:
    entry = stored(matrix.exact(name))
    return entry if matrix.has_plain(name) else entry[:2]


def convert(file: Path, out: Path, names: str | None, heads: int | None, overwrite: bool) -> None:
    """Write a matrix in another form, and with other names."""
    check_apart([out], [], [file])
    matrix = read_imatrix([file])
    made: Named = _made(matrix)
    if names is not None and heads is None:
        raise InputError("--names turns heads into rows", remedy="Give --heads, the model's number of heads")
    if heads is not None and names is None:
        raise InputError("--heads says how --names turns heads into rows", remedy="Give --names, or leave out --heads")
    entries = _NAMES[names](made, heads) if names and heads else made
    if out.suffix == ".dat":
        dataset = matrix.datasets[-1] if matrix.datasets else ""
        content: Written = DatFile(entries, dataset, matrix.chunk_count, matrix.chunk_size)
    else:
        content = MatrixFile(entries, datasets=matrix.datasets, **_sizes(matrix))
    write_matrix(out, content, overwrite=overwrite)


Named = Mapping[str, Made]
Rows = Callable[["NDArray[np.float32]"], "NDArray[np.float32]"]


def _changed(entry: Made, rows: Rows) -> Made:
    """Return an entry with other sums, and the same counts."""

    def make() -> Entry:
        squares, counts, *plain = entry.make()
        return (rows(squares), counts, *map(rows, plain))

    return replace(entry, shape=rows(np.zeros(entry.shape, np.float32)).shape, make=make)


def _mla(made: Named, heads: int) -> Named:
    """Give attn_v_b what attn_kv_b has: in every head it is multiplied with averages of the same vectors."""

    def repeated(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.tile(rows, heads)

    found = {_renamed(name, VALUES): _changed(made[name], repeated) for name in made if kind_of(name) == LEGACY}
    return found | dict(made)


def _averaged(heads: int) -> Rows:
    def average(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        if rows.size % heads:
            raise InputError("--heads is not that of this matrix", expected=f"a divisor of {rows.size}", found=heads)
        return np.asarray(rows.reshape(heads, -1).mean(axis=0, dtype=np.float64), np.float32)

    return average


def _legacy(made: Named, heads: int) -> Named:
    """Give attn_kv_b the average over the heads of attn_v_b; nothing in a legacy file is multiplied as attn_k_b is."""
    average, values = _averaged(heads), [name for name in made if kind_of(name) == VALUES]
    found = {_renamed(name, LEGACY): _changed(made[name], average) for name in values}
    return found | {name: entry for name, entry in made.items() if kind_of(name) not in HEADS}


def _ik(made: Named, heads: int) -> Named:
    """Give attn_k_b and attn_v_b one row for all heads, as ik_llama.cpp collects it."""
    average = _averaged(heads)
    return {name: _changed(entry, average) if kind_of(name) in HEADS else entry for name, entry in made.items()}


_NAMES: Mapping[str, Callable[[Named, int], Named]] = {"mla": _mla, "legacy": _legacy, "ik": _ik}


def _renamed(name: str, kind: str) -> str:
    return name.replace(f".{kind_of(name)}.", f".{kind}.")
