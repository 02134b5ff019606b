"""`gguf-mla inspect --html`: what is in a model as one page that loads nothing, with a treemap of its tensors."""

from __future__ import annotations

import html
import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from gguf_mla import units
from gguf_mla.cli.treemap import Tile, svg
from gguf_mla.files.guard import check_apart, check_free, mark_of, partial_path
from gguf_mla.files.input import InputFile
from gguf_mla.files.output import OutputFile
from gguf_mla.layout.names import split_name
from gguf_mla.quoting import NAME, TEXT, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from gguf_mla.container.reader import GgufFile, GgufTensor

BEGIN = '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>gguf-mla inspect</title>'
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1240px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: 0.15em 0.9em 0.15em 0; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; }
svg rect { stroke: #fff; stroke-width: 0.4; }
svg rect.group { fill: none; stroke: #222; stroke-width: 1.4; }
svg text { font: 11px system-ui, sans-serif; fill: #111; pointer-events: none; }
svg text.name { font-weight: 700; text-anchor: end; }
span.key { display: inline-block; width: 0.9em; height: 0.9em; margin-right: 0.5em; vertical-align: -0.1em; }
"""


def write_page(path: Path, file: GgufFile, facts: Mapping[str, Any], inputs: Iterable[Path]) -> None:
    """Write the page; an older page of a model is replaced, nothing else.

    InputError for another file that is there and for one of the inputs, MachineError when it cannot be written.
    """
    check_apart([path], [partial_path(path)], inputs)
    check_free(path, overwrite=_is_page(path))
    with OutputFile(path, 0, overwrite=True) as out:
        out.put(page(file, facts).encode())


def _is_page(path: Path) -> bool:
    if mark_of(path) is None:
        return False
    with InputFile(path) as file:
        return file.read(0, min(file.size, len(BEGIN))).tobytes() == BEGIN.encode()


def page(file: GgufFile, facts: Mapping[str, Any]) -> str:
    """Return the page as HTML text; `facts` are those of gguf_mla.cli.inspect."""
    colours = {kind: colour(_bits(tensors)) for kind, tensors in _by_type(file).items()}
    bits = units.bits_per_weight(facts["tensor_bytes"], facts["parameters"])
    told = {
        "architecture": facts["architecture"],
        "layout": facts["variant"],
        "parameters": f"{units.count(facts['parameters'])} in {len(file.tensors)} tensors",
        "size": f"{units.size(facts['tensor_bytes'])} of tensors, {bits} bits per weight",
    }
    return "\n".join(
        [
            f"{BEGIN}<style>{STYLE}</style></head><body>",
            f"<h1>{_safe(facts['name'] or file.path.name)}</h1>",
            _table([(name, _safe(value, TEXT)) for name, value in told.items()], numbers=()),
            "<h2>Tensors by layer</h2>",
            "<p>An area is a number of bytes, a colour a type; a thick line is around a layer.</p>",
            svg(_groups(file, colours)),
            "<h2>Types</h2>",
            _types(file, colours),
            "<h2>Kinds of tensors</h2>",
            _kinds(file),
            "</body></html>\n",
        ]
    )


def colour(bits: float) -> str:
    """Return the colour of a type by its bits per weight: red for few, green for four or five, blue for many."""
    hue = 220 * (max(bits, 1.0) - 1) / 8 if bits < 9 else 220 + 25 * math.log2(bits / 8)
    return f"hsl({hue:.0f}, 62%, 68%)"


def _by_type(file: GgufFile) -> dict[str, list[GgufTensor]]:
    found: dict[str, list[GgufTensor]] = defaultdict(list)
    for tensor in file.tensors.values():
        found[tensor.type].append(tensor)
    return dict(sorted(found.items(), key=lambda entry: -_bytes(entry[1])))


def _bits(tensors: Sequence[GgufTensor]) -> float:
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    return 8 * _bytes(tensors) / weights if weights else 0.0


def _bytes(tensors: Iterable[GgufTensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _groups(file: GgufFile, colours: Mapping[str, str]) -> dict[str, list[Tile]]:
    groups: dict[str, list[Tile]] = defaultdict(list)
    for tensor in file.tensors.values():
        layer, name = split_name(tensor.name)
        label = name.removesuffix(".weight")
        title = f"{tensor.name}: {tensor.type}, {'x'.join(map(str, tensor.shape))}, {units.size(tensor.nbytes)}"
        group = label if layer is None else f"layer {layer}"
        groups[group].append(Tile(label, title, colours[tensor.type], tensor.nbytes))
    return groups


def _types(file: GgufFile, colours: Mapping[str, str]) -> str:
    total = _bytes(file.tensors.values()) or 1
    rows = []
    for kind, tensors in _by_type(file).items():
        key = f'<span class="key" style="background: {colours[kind]}"></span>{_safe(kind)}'
        share = f"{100 * _bytes(tensors) / total:.1f} %"
        rows.append((key, f"{_bits(tensors):.2f}", str(len(tensors)), units.size(_bytes(tensors)), share))
    return _table(rows, ("type", "bits per weight", "tensors", "size", "share"), numbers=(1, 2, 3, 4))


def _kinds(file: GgufFile) -> str:
    sizes: Counter[str] = Counter()
    types: dict[str, Counter[str]] = defaultdict(Counter)
    for tensor in file.tensors.values():
        kind = split_name(tensor.name)[1]
        sizes[kind] += tensor.nbytes
        types[kind][tensor.type] += 1
    rows = [
        (
            _safe(kind),
            ", ".join(f"{count} {_safe(name)}" for name, count in types[kind].most_common()),
            units.size(size),
        )
        for kind, size in sizes.most_common()
    ]
    return _table(rows, ("tensor", "types", "size"), numbers=(2,))


def _table(rows: Sequence[tuple[str, ...]], header: Sequence[str] = (), *, numbers: Sequence[int]) -> str:
    """Return rows of HTML as a table; the columns `numbers` are aligned to the right."""
    head = "".join(f"<th>{title}</th>" for title in header)
    body = "".join(
        "<tr>"
        + "".join(f'<td class="n">{cell}</td>' if i in numbers else f"<td>{cell}</td>" for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def _safe(text: object, limit: int = NAME) -> str:
    return html.escape(quoted(str(text), limit))
