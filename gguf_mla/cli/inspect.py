"""`gguf-mla inspect`: what is in a GGUF file."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_mla import units
from gguf_mla.cli import cache_report, printing
from gguf_mla.cli.table import table
from gguf_mla.container.reader import open_gguf
from gguf_mla.container.splits import SPLIT_COUNT, SPLIT_NO, GgufParts, is_split, open_gguf_parts
from gguf_mla.errors import InputError
from gguf_mla.files import checksums
from gguf_mla.layout.detect import attention_layout, variant
from gguf_mla.plan.changes import changes
from gguf_mla.quoting import TEXT, quoted, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_mla.container.reader import GgufFile
    from gguf_mla.files.readable import Place

SHOWN = 60  # characters of a metadata value in the table


def inspect(
    file: Place, tensors: bool, context: int | None, fit: str | None, sequences: int, as_json: bool, verify: bool
) -> None:
    """Print what is in a file, or how large its key-value cache is."""
    if verify:
        _verify(file)
    if context is None and fit is None:
        opened = open_inspected(file)
        click.echo(printing.as_json(summary(opened)) if as_json else text(opened, tensors=tensors))
        return
    records = cache_report.records(open_gguf_parts(file), context, fit, sequences)
    click.echo(printing.as_json(records) if as_json else cache_report.text(records))


def open_inspected(file: Place) -> GgufFile:
    """Open a file, or all of a split model whose first part it is and whose other parts are there."""
    opened = open_gguf(file)
    if not is_split(opened):
        return opened
    try:
        return open_gguf_parts(file)
    except InputError:  # another part, or not all are there: then it is shown for itself
        return opened


def _parts(file: GgufFile) -> str:
    """Say which part of a split model a file is, or that it is all of one; "" for a whole file."""
    if isinstance(file, GgufParts):
        return f"all {len(file.files)} parts of a split model"
    number, count = (file.metadata.get(key) for key in (SPLIT_NO, SPLIT_COUNT))
    whole = type(number) is int and type(count) is int and count > 1
    return f"part {number + 1} of {count} of a split model" if whole and number is not None else ""


def _verify(file: Place) -> None:
    if not isinstance(file, Path):
        remedy = "Download it, or compare the inputs of a run: --verify-source"
        raise InputError("--verify reads all of a file on this machine", file=file, remedy=remedy)
    expected, found, note = checksums.stated(file), checksums.sha256(file), checksums.beside(file)
    if found != expected:
        click.echo(f"{file}: has changed: its SHA-256 is {found}, {note} says {expected}", err=True)
        raise click.exceptions.Exit(1)
    click.echo(f"{file}: SHA-256 {found}, as {note} says", err=True)


def summary(file: GgufFile) -> dict[str, Any]:
    """Return everything about a file as JSON-ready data."""
    return {
        "file": str(file.path),
        "size": file.size,
        "version": file.version,
        **({"parts": _parts(file)} if _parts(file) else {}),
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
        f"architecture  {shown(known['architecture'])}",
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
