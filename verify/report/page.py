"""A proof as one self-contained HTML page."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_mla import units
from gguf_mla.cli import page as pages
from gguf_mla.cli.page import BAD, cell, document, facts, safe, section, table, wide
from gguf_mla.layout.names import split_name
from gguf_mla.quoting import TEXT
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
    from collections.abc import Callable, Iterable, Iterator

    from gguf_mla.files.readable import AnyPath
    from verify.job import Proof
    from verify.levels.weights import TensorError

COMMAND = "verify"
BEGIN = pages.begin(COMMAND)
TITLES = {
    Grade.WRONG: "What is wrong",
    Grade.CANNOT_TELL: "What cannot be told",
    Grade.DIFFERS: "What differs, and changes nothing",
}
KINDS = {
    Grade.WRONG: "bad",
    Grade.CANNOT_TELL: "open",
    Grade.DIFFERS: "good",
    Grade.RIGHT: "good",
}  # how it is coloured
FEW = 12  # layers whose numbers all have room above their columns
WORDS = {Grade.CANNOT_TELL: "not proven", Grade.DIFFERS: "right"}  # where the grade's own does not suit a heading


@contextmanager
def report(path: Path, inputs: Iterable[Path]) -> Iterator[Callable[[Proof], None]]:
    """Give what writes the page of a proof; that it can be written is certain before the proof begins.

    InputError for another file that is there and for one of the inputs, MachineError when it cannot be written.
    """
    with pages.report(path, COMMAND, inputs) as write:
        yield lambda proof: write(page(proof))


def page(proof: Proof) -> str:
    """Return the page as HTML text."""
    return document(COMMAND, proof.request.candidate.name, _sections(proof))


def _sections(proof: Proof) -> Iterator[str]:
    yield _head(proof)
    for grade, title in TITLES.items():
        items = "".join(
            f"<p><b>{safe(finding.level)}</b> {safe(finding.sentence, TEXT)}</p>"
            for finding in proof.findings
            if finding.grade is grade
        )
        yield f'<h2>{title}</h2><div class="findings {KINDS[grade]}">{items}</div>' if items else ""
    if proof.failure is not None:
        yield f'<h2>What ended the proof</h2><div class="findings"><p>{safe(str(proof.failure), TEXT)}</p></div>'
    yield from (f'<p class="soft">{safe(warning, TEXT)}</p>' for warning in proof.warnings)
    if proof.candidate is not None:
        yield _sizes(proof)
    if proof.tensors:
        yield _map(proof)
        yield section("Worst tensors", table(*worst(proof.tensors)))
    if proof.attention:
        yield _layers(proof)
    if choices := choice_rows(proof.layers or proof.attention):
        yield section("What the indexers choose", table(CHOICE_HEADER, choices))
    if proof.scores is not None:
        histogram = plots.histogram(proof.scores.kld.tolist(), "KL divergence of a token, nats")
        yield section("Predictions", histogram + facts(score_rows(proof.scores)))
    for distance, scores in enumerate(proof.predicted, 2):
        yield section(predicted_title(distance).capitalize(), facts(score_rows(scores)))
    yield from _others(proof)


def _others(proof: Proof) -> Iterator[str]:
    """Yield what was asked for besides the levels."""
    if proof.exact:
        yield section("Byte for byte", table(EXACT_HEADER, exact_rows(proof.exact)))
    if proof.engine:
        yield section("llama.cpp beside the forward pass", table(ENGINE_HEADER, engine_rows(proof.engine)))


def _name(path: AnyPath) -> str:
    return path.resolve().name if isinstance(path, Path) else path.name


def _head(proof: Proof) -> str:
    word, kind = WORDS.get(proof.grade, proof.grade.value), KINDS[proof.grade]
    levels = ", ".join(f"{level} {seconds:.1f} s" for level, seconds in proof.seconds.items())
    candidate, reference = (safe(_name(path)) for path in (proof.request.candidate, proof.request.reference))
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
    return section("Size by type", bar + table(("type", "size", "share"), rows))


def _map(proof: Proof) -> str:
    """Return tensor groups by layers, coloured by how much of its limit a tensor's RMS error takes."""
    groups: dict[str, dict[int | None, TensorError]] = defaultdict(dict)
    for tensor in proof.tensors:
        layer, rest = split_name(tensor.name)
        cells = groups[rest.removesuffix(".weight")]
        other = cells.get(layer)  # the other half of a legacy attn_kv_b
        cells[layer] = tensor if other is None or not other.rms > tensor.rms else other
    layers = sorted({layer for cells in groups.values() for layer in cells if layer is not None})
    step = 1 if len(layers) <= FEW else 5
    head = "".join(f"<th>{layer if layer % step == 0 else ''}</th>" for layer in layers)
    rows = [
        f"<tr><td>{safe(group)}</td>"
        + "".join(_cell(cells.get(layer), proof) for layer in (layers if None not in cells else [None]))
        + "</tr>"
        for group, cells in groups.items()
    ]
    shown = wide(f'<table class="map"><tr><th>layer</th>{head}</tr>{"".join(rows)}</table>')
    note = (
        '<p class="soft">A column per layer; what belongs to none has one cell. '
        "The stronger the colour, the more of its type's limit the RMS error takes.</p>"
    )
    return section("Error by tensor", note + shown)


def _cell(tensor: TensorError | None, proof: Proof) -> str:
    if tensor is None:
        return "<td></td>"
    limit = proof.request.limits.of(tensor.type).rms
    beyond = exceeds(tensor.rms, limit)
    colour, share = (BAD, 1.0) if beyond else ("var(--c0)", tensor.rms / limit if tensor.rms else 0.0)
    title = f"{tensor.name}, {tensor.type}: RMS error {tensor.rms:.3g}, worst row {tensor.row_rms:.3g}"
    return cell(title, colour, share)


def _layers(proof: Proof) -> str:
    series = {"attention": [result.measured.wmape for result in proof.attention]}
    if proof.layers:
        series["whole layer"] = [result.measured.wmape for result in proof.layers]
    note = '<p class="soft">What a layer adds to the same input, candidate against reference.</p>'
    return section("Layer by layer", note + plots.lines(series, "WMAPE"))
