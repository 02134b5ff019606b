"""`gguf-mla inspect --html`: what is in a model as one page that loads nothing, with a treemap of its tensors."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from gguf_mla import units
from gguf_mla.cli.page import document, report, safe, section, table
from gguf_mla.cli.page import facts as page_facts
from gguf_mla.cli.treemap import Tile, svg
from gguf_mla.layout.names import split_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from gguf_mla.container.reader import GgufFile, GgufTensor

COMMAND = "inspect"


def write_page(path: Path, file: GgufFile, facts: Mapping[str, Any], inputs: Iterable[Path]) -> None:
    """Write the page; an older page of a model is replaced, nothing else.

    InputError for another file that is there and for one of the inputs, MachineError when it cannot be written.
    """
    with report(path, COMMAND, inputs) as write:
        write(page(file, facts))


def page(file: GgufFile, facts: Mapping[str, Any]) -> str:
    """Return the page as HTML text; `facts` are those of gguf_mla.cli.inspect."""
    name = facts["name"] or file.path.name
    return document(COMMAND, name, _sections(name, file, facts))


def _sections(name: str, file: GgufFile, facts: Mapping[str, Any]) -> Iterator[str]:
    colours = _colours(file)
    bits = units.bits_per_weight(facts["tensor_bytes"], facts["parameters"])
    told = {
        "architecture": facts["architecture"],
        "layout": facts["variant"],
        "parameters": f"{units.count(facts['parameters'])} in {len(file.tensors)} tensors",
        "size": f"{units.size(facts['tensor_bytes'])} of tensors, {bits} bits per weight",
    }
    yield f"<h1>{safe(name)}</h1>{page_facts(told.items())}"
    note = '<p class="soft">An area is a number of bytes, a colour a type; a thick line is around a layer.</p>'
    yield section("Tensors by layer", note + _key(colours) + svg(_groups(file, colours)))
    yield section("Types", _types(file))
    yield section("Kinds of tensors", _kinds(file))


def _key(colours: Mapping[str, str]) -> str:
    """Return which colour is which type."""
    return "".join(
        f'<p class="swatch"><span style="background:{shown}"></span>{safe(kind)}</p>' for kind, shown in colours.items()
    )


def _colours(file: GgufFile) -> dict[str, str]:
    """Return a colour for each type; of types with the same bits each further one is darker."""
    hues = {kind: hue(_bits(tensors)) for kind, tensors in _by_type(file).items()}
    alike = Counter[int]()
    found = {}
    for kind, angle in hues.items():
        found[kind] = f"hsl({angle}, 62%, {68 - 14 * alike[angle]}%)"
        alike[angle] += 1
    return found


def hue(bits: float) -> int:
    """Return the hue of a type by its bits per weight: red for few, green for four or five, blue for many."""
    return round(220 * (max(bits, 1.0) - 1) / 8 if bits < 9 else 220 + 25 * math.log2(bits / 8))


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


def _types(file: GgufFile) -> str:
    total = _bytes(file.tensors.values()) or 1
    rows = [
        (
            kind,
            f"{_bits(tensors):.2f}",
            len(tensors),
            units.size(_bytes(tensors)),
            f"{100 * _bytes(tensors) / total:.1f} %",
        )
        for kind, tensors in _by_type(file).items()
    ]
    return table(("type", "bits per weight", "tensors", "size", "share"), rows)


def _kinds(file: GgufFile) -> str:
    sizes: Counter[str] = Counter()
    types: dict[str, Counter[str]] = defaultdict(Counter)
    for tensor in file.tensors.values():
        kind = split_name(tensor.name)[1]
        sizes[kind] += tensor.nbytes
        types[kind][tensor.type] += 1
    rows = [
        (kind, ", ".join(f"{count} {name}" for name, count in types[kind].most_common()), units.size(size))
        for kind, size in sizes.most_common()
    ]
    return table(("tensor", "types", "size"), rows)
