"""A proof as one self-contained HTML page."""

from __future__ import annotations

import html
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_mla import units
from gguf_mla.errors import InputError, MachineError
from gguf_mla.files import platform
from gguf_mla.files.guard import check_apart, is_same, mark_of, obstacle, partial_path
from gguf_mla.files.input import InputFile
from gguf_mla.files.output import OutputFile
from gguf_mla.layout.names import split_name
from gguf_mla.quoting import NAME, TEXT, quoted
from gguf_mla.version import __version__
from verify.findings import Grade
from verify.limits import exceeds
from verify.report import plots
from verify.report.terminal import (
    CHOICE_HEADER,
    ENGINE_HEADER,
    EXACT_HEADER,
    choice_rows,
    engine_rows,
    exact_rows,
    predicted_title,
    score_rows,
    worst,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from gguf_mla.files.readable import Place
    from verify.job import Proof
    from verify.levels.weights import TensorError

BEGIN = (  # tells our pages from files that are not to be replaced
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="generator" content="gguf-mla verify">'
)
TITLES = {
    Grade.WRONG: "What is wrong",
    Grade.CANNOT_TELL: "What cannot be told",
    Grade.DIFFERS: "What differs, and changes nothing",
}
KINDS = {Grade.WRONG: "bad", Grade.CANNOT_TELL: "bad", Grade.DIFFERS: "good", Grade.RIGHT: "good"}  # how it is coloured
WORDS = {Grade.CANNOT_TELL: "not proven", Grade.DIFFERS: "right"}  # where the grade's own does not suit a heading
STYLE = Path(__file__).with_name("page.css")


@contextmanager
def report(path: Path, inputs: Iterable[Path]) -> Iterator[Callable[[Proof], None]]:
    """Give what writes the page of a proof; that it can be written is certain before the proof begins.

    An older page is replaced, nothing else, and only when the new one is complete. Raises InputError for another file
    that is there and for one of the inputs, MachineError when the page cannot be written.
    """
    check_apart([path], [partial_path(path)], inputs)
    if not path.parent.is_dir():
        raise MachineError("the report cannot be written, its directory does not exist", file=path)
    if obstacle(path, overwrite=_is_page(path)):
        what = "is there already, and is not a report of an earlier proof"
        raise InputError(what, file=path, remedy="Choose another name for the report")
    draft = partial_path(path)  # what a killed run has left of a page is thrown away
    if is_same(draft, path) and _is_page(path):
        platform.remove(draft)  # it was killed between giving the page its name and taking this one from it
    file = OutputFile(path, 0, known={path.name: draft.stat().st_ino} if _is_page(draft) else {})

    def write(proof: Proof) -> None:
        content = page(proof).encode()
        file.overwrite = _is_page(path)
        file.put(content)

    file.kept = False
    with file:
        yield write


def _is_page(path: Path) -> bool:
    """Whether a page of ours is there, or as much of one as has its beginning."""
    if mark_of(path) is None:
        return False
    with InputFile(path) as file:
        return file.read(0, min(file.size, len(BEGIN))).tobytes() == BEGIN.encode()


def _safe(text: object, limit: int = NAME) -> str:
    return html.escape(quoted(str(text), limit))


def page(proof: Proof) -> str:
    """Return the page as HTML text."""
    name = _safe(proof.request.candidate.name)
    return (
        f"{BEGIN}<title>{name}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>{''.join(_sections(proof))}</main></body></html>\n"
    )


def _sections(proof: Proof) -> Iterator[str]:
    yield _head(proof)
    for grade, title in TITLES.items():
        items = "".join(
            f"<p><b>{_safe(finding.level)}</b> {_safe(finding.sentence, TEXT)}</p>"
            for finding in proof.findings
            if finding.grade is grade
        )
        yield f'<h2>{title}</h2><div class="findings {KINDS[grade]}">{items}</div>' if items else ""
    if proof.failure is not None:
        yield f'<h2>What ended the proof</h2><div class="findings"><p>{_safe(str(proof.failure), TEXT)}</p></div>'
    yield from (f'<p class="soft">{_safe(warning, TEXT)}</p>' for warning in proof.warnings)
    if proof.candidate is not None:
        yield _sizes(proof)
    if proof.tensors:
        yield _map(proof)
        yield _section("Worst tensors", _table(*worst(proof.tensors)))
    if proof.attention:
        yield _layers(proof)
    if choices := choice_rows(proof.layers or proof.attention):
        yield _section("What the indexers choose", _table(CHOICE_HEADER, choices))
    if proof.scores is not None:
        histogram = plots.histogram(proof.scores.kld.tolist(), "KL divergence of a token, nats")
        yield _section("Predictions", histogram + _table(("", "value"), score_rows(proof.scores)))
    for distance, scores in enumerate(proof.predicted, 2):
        yield _section(predicted_title(distance).capitalize(), _table(("", "value"), score_rows(scores)))
    yield from _others(proof)


def _others(proof: Proof) -> Iterator[str]:
    """Yield what was asked for besides the levels."""
    if proof.exact:
        yield _section("Byte for byte", _table(EXACT_HEADER, exact_rows(proof.exact)))
    if proof.engine:
        yield _section("llama.cpp beside the forward pass", _table(ENGINE_HEADER, engine_rows(proof.engine)))


def _name(path: Place) -> str:
    return path.resolve().name if isinstance(path, Path) else path.name


def _head(proof: Proof) -> str:
    word, kind = WORDS.get(proof.grade, proof.grade.value), KINDS[proof.grade]
    levels = ", ".join(f"{level} {seconds:.1f} s" for level, seconds in proof.seconds.items())
    candidate, reference = (_safe(_name(path)) for path in (proof.request.candidate, proof.request.reference))
    return (
        f'<h1>{candidate} is <span class="{kind}">{word}</span></h1>'
        f'<p class="soft">against {reference}; looked at: {levels}; gguf-mla {__version__}</p>'
    )


def _sizes(proof: Proof) -> str:
    sizes: Counter[str] = Counter()
    for tensor in proof.candidate.weights.file.tensors.values() if proof.candidate else ():
        sizes[tensor.type] += tensor.nbytes
    total = sizes.total()
    rows = [(name, units.size(size), f"{100 * size / total:.1f} %") for name, size in sizes.most_common()]
    bar = plots.shares(dict(sizes.most_common()))
    return _section("Size by type", bar + _table(("type", "size", "share"), rows))


def _map(proof: Proof) -> str:
    """Return tensor groups by layers, coloured by how much of its limit a tensor's RMS error takes."""
    groups: dict[str, dict[int | None, TensorError]] = defaultdict(dict)
    for tensor in proof.tensors:
        layer, rest = split_name(tensor.name)
        cells = groups[rest.removesuffix(".weight")]
        other = cells.get(layer)  # the other half of a legacy attn_kv_b
        cells[layer] = tensor if other is None or not other.rms > tensor.rms else other
    layers = sorted({layer for cells in groups.values() for layer in cells if layer is not None})
    head = "".join(f"<th>{layer if layer % 5 == 0 else ''}</th>" for layer in layers)
    rows = [
        f"<tr><td>{_safe(group)}</td>"
        + "".join(_cell(cells.get(layer), proof) for layer in (layers if None not in cells else [None]))
        + "</tr>"
        for group, cells in groups.items()
    ]
    table = f'<div class="scroll"><table class="map"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    note = '<p class="soft">A column per layer. The darker, the more of its type\'s limit the RMS error takes.</p>'
    return _section("Error by tensor", note + table)


def _cell(tensor: TensorError | None, proof: Proof) -> str:
    if tensor is None:
        return "<td></td>"
    limit = proof.request.limits.of(tensor.type).rms
    beyond = exceeds(tensor.rms, limit)
    colour, share = ("var(--bad)", 1.0) if beyond else ("var(--c0)", tensor.rms / limit if tensor.rms else 0.0)
    strength = round(100 * max(share, 0.06))
    title = f"{tensor.name}, {tensor.type}: RMS error {tensor.rms:.3g}, worst row {tensor.row_rms:.3g}"
    background = f"color-mix(in srgb, {colour} {strength}%, var(--paper))"
    return f'<td style="background:{background}" title="{_safe(title)}"></td>'


def _layers(proof: Proof) -> str:
    series = {"attention": [result.measured.wmape for result in proof.attention]}
    if proof.layers:
        series["whole layer"] = [result.measured.wmape for result in proof.layers]
    note = '<p class="soft">What a layer adds to the same input, candidate against reference.</p>'
    return _section("Layer by layer", note + plots.lines(series, "WMAPE"))


def _section(title: str, content: str) -> str:
    return f"<h2>{_safe(title)}</h2>{content}"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{_safe(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
