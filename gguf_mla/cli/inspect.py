"""`gguf-mla inspect`: what is in a GGUF file."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_mla import units
from gguf_mla.cli import cache_report, matrix_report
from gguf_mla.cli.document import answer
from gguf_mla.cli.model_page import write_page
from gguf_mla.cli.printing import log
from gguf_mla.cli.table import table
from gguf_mla.container.reader import open_gguf
from gguf_mla.container.splits import SPLIT_COUNT, SPLIT_NO, GgufParts, is_split, with_others
from gguf_mla.errors import InputError
from gguf_mla.files import checksums
from gguf_mla.files.readable import here
from gguf_mla.layout.detect import attention_layout, variant
from gguf_mla.plan.changes import changes
from gguf_mla.quoting import TEXT, quoted, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_mla.container.reader import GgufFile
    from gguf_mla.files.readable import AnyPath

SHOWN = 60  # characters of a metadata value in the table


def inspect(
    file: AnyPath,
    tensors: bool,
    context: int | None,
    fit: str | None,
    sequences: int,
    page: Path | None,
    as_json: bool,
    verify: bool,
) -> None:
    """Print what is in a file, or how large its key-value cache is; write a page of it."""
    if verify:
        _verify(file, as_json=as_json)
    if not tensors and matrix_report.is_dat(file):
        matrix_report.show_dat(file, as_json=as_json)
        return
    first = open_gguf(file)
    is_matrix = first.metadata.get("general.type") in matrix_report.KINDS
    if is_matrix and not tensors and isinstance(file, Path):  # one of the hub is shown as it is
        matrix_report.show(first, file, as_json=as_json)
        return
    wants_cache = context is not None or fit is not None
    opened = with_others(first, file) if wants_cache else _with_those_there(first, file)
    caches = cache_report.records(opened, context, fit, sequences) if wants_cache else []
    if page is not None:
        write_page(page, opened, facts(opened), here(_paths(opened)))
    if as_json:
        found: dict[str, Any] = {"caches": caches} if wants_cache else {"model": summary(opened)}
        answer(inputs=_paths(opened), **found)
    else:
        click.echo(cache_report.text(caches, opened, fit) if wants_cache else text(opened, tensors=tensors))


def _paths(file: GgufFile) -> list[AnyPath]:
    return [part.path for part in file.files] if isinstance(file, GgufParts) else [file.path]


def _with_those_there(first: GgufFile, file: AnyPath) -> GgufFile:
    """Return a file, or all of a split model whose first part it is and whose other parts are there."""
    if not is_split(first):
        return first
    try:
        return with_others(first, file)
    except InputError:  # another part, or not all are there: then it is shown for itself
        return first


def _parts(file: GgufFile) -> str:
    """Say which part of a split model a file is, or that it is all of one; "" for a whole file."""
    if isinstance(file, GgufParts):
        return f"all {len(file.files)} parts of a split model"
    number, count = (file.metadata.get(key) for key in (SPLIT_NO, SPLIT_COUNT))
    whole = type(number) is int and type(count) is int and count > 1
    return f"part {number + 1} of {count} of a split model" if whole and number is not None else ""


def _verify(file: AnyPath, *, as_json: bool) -> None:
    if not isinstance(file, Path):
        remedy = "Download it, or compare the inputs of a run: --verify-source"
        raise InputError("--verify reads all of a file on this machine", file=file, remedy=remedy)
    expected, found, note = checksums.stated(file), checksums.sha256(file), checksums.beside(file)
    if found == expected:
        log("verified", f"{file}: SHA-256 {found}, as {note} says")
        return
    changed = InputError("has changed", file=file, expected=f"SHA-256 {expected}, as {note} says", found=found)
    if as_json:
        answer(inputs=[file], errors=[changed], status=1)
    log("changed", f"{file}: has changed: its SHA-256 is {found}, {note} says {expected}")
    raise click.exceptions.Exit(1)


def summary(file: GgufFile) -> dict[str, Any]:
    """Return everything about a file as JSON-ready data."""
    return {
        "path": str(file.path),
        "bytes": file.size,
        "gguf_version": file.version,
        "split": _parts(file) or None,
        **facts(file),
        "metadata": {key: _json(value.data) for key, value in file.values.items()},
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "type": t.type, "offset": t.offset, "bytes": t.nbytes}
            for t in file.tensors.values()
        ],
    }


def facts(file: GgufFile) -> dict[str, Any]:
    """Return what can be said of a file in a few words."""
    by_type: Counter[str] = Counter()
    for tensor in file.tensors.values():
        by_type[tensor.type] += tensor.nbytes
    return {
        "architecture": file.metadata.get("general.architecture"),
        "name": file.metadata.get("general.name"),
        "layout": attention_layout(file.tensors),
        "variant": variant(file),
        "upgrade": changes(file),
        "parameters": sum(math.prod(tensor.shape) for tensor in file.tensors.values()),
        "tensor_bytes": by_type.total(),
        "bytes_by_type": dict(by_type.most_common()),
    }


def text(file: GgufFile, *, tensors: bool) -> str:
    """Return the same for people."""
    known = facts(file)
    total, parameters = known["tensor_bytes"], known["parameters"]
    bits = units.bits_per_weight(total, parameters)
    lines = [
        f"{quoted(str(file.path), TEXT)}: GGUF {file.version}, {units.size(file.size)}",
        *([f"parts         {_parts(file)}"] if _parts(file) else []),
        f"architecture  {_architecture(file, known['architecture'])}",
        f"layout        {known['variant']}",
        *(f"upgrade       {quoted(change, TEXT)}" for change in known["upgrade"]),
        f"parameters    {units.count(parameters)} in {len(file.tensors)} tensors, {bits} bits per weight",
        "",
        table(("type", "size", "share"), _shares(known["bytes_by_type"], total), right="size,share"),
        "",
        table(
            ("metadata", "type", "value"),
            ((key, _kind(value), _short(value.data)) for key, value in file.values.items()),
        ),
    ]
    if tensors:
        rows = [
            (t.name, t.type, "x".join(map(str, t.shape)), units.size(t.nbytes), t.offset) for t in file.tensors.values()
        ]
        lines += ["", table(("tensor", "type", "shape", "size", "offset"), rows, right="size,offset")]
    return "\n".join(lines)


def _architecture(file: GgufFile, named: Any) -> str:
    later = named is None and file.metadata.get(SPLIT_NO)
    return "said in the first part" if later else shown(named)


def _shares(by_type: dict[str, int], total: int) -> list[Sequence[object]]:
    return [(name, units.size(nbytes), f"{100 * nbytes / total:.1f} %") for name, nbytes in by_type.items()]


def _kind(value: Any) -> str:
    return f"{value.item.name}[{len(value.data)}]".lower() if value.item is not None else str(value.kind.name).lower()


def _short(data: Any) -> str:
    if not _is_array(data):
        return quoted(_item(data), SHOWN)
    return quoted(f"[{', '.join(map(_item, data[:6]))}{', ...' if len(data) > 6 else ''}]", SHOWN)


def _item(data: Any) -> str:
    return repr(data[: SHOWN + 1]) if isinstance(data, str) else str(data)


def _json(data: Any) -> Any:
    if not _is_array(data):
        return data
    return list(data) if len(data) <= 64 else {"length": len(data)}


def _is_array(data: Any) -> bool:
    return not isinstance(data, (str, int, float, bool))
