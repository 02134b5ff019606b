"""A proof for the terminal and for programs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gguf_mla import units
from gguf_mla.cli.table import table
from gguf_mla.quoting import TEXT, quoted
from gguf_mla.version import __version__
from verify.findings import Grade, by_grade

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from verify.job import Proof, Request
    from verify.levels.attention import LayerAgreement
    from verify.levels.engine import EngineAgreement
    from verify.levels.exact import Sameness
    from verify.levels.logits import Scores
    from verify.levels.weights import TensorError

CHOICE_HEADER = ("choice of layer", "choices", "the same", "tokens in common", "scores' cosine", "scores' WMAPE")
ENGINE_HEADER = ("llama.cpp: prompt tokens", "largest |Δ log-probability|", "KL divergence", "same top token")
EXACT_HEADER = ("bytes of", "tensors", "the encoder's", "blocks that are not")
SHOWN = 8  # worst tensors, further findings
SCHEMA = 1  # of the JSON; raised when a field goes or comes to mean something else, not when one is added
REQUESTED = ("level", "text", "tokens", "context", "chunks", "form", "device", "threads", "engine", "exact", "imatrix")


def text(proof: Proof) -> str:
    """Return what people read: a table per level and the verdict last."""
    parts = []
    if proof.tensors:
        header, rows = worst(proof.tensors)
        parts += [_weights(proof.tensors), table(header, rows, right=",".join(header[2:]))]
    if proof.attention:
        parts.append(_layers("attention", proof.attention))
    if proof.layers:
        parts.append(_layers("layer", proof.layers))
    if choices := choice_rows(proof.layers or proof.attention):
        parts.append(table(CHOICE_HEADER, choices, right=",".join(CHOICE_HEADER[1:])))
    if proof.scores is not None:
        parts.append(table(("logits", "value"), score_rows(proof.scores)))
    for distance, scores in enumerate(proof.predicted, 2):
        parts.append(table((predicted_title(distance), "value"), score_rows(scores)))
    if proof.exact:
        parts.append(table(EXACT_HEADER, exact_rows(proof.exact), right=",".join(EXACT_HEADER[1:])))
    if proof.engine:
        parts.append(table(ENGINE_HEADER, engine_rows(proof.engine), right=",".join(ENGINE_HEADER)))
    warnings = [f"warning: {quoted(warning, TEXT)}" for warning in proof.warnings]
    return "\n\n".join([*parts, "\n".join([*warnings, verdict(proof)])])


def verdict(proof: Proof) -> str:
    """Return a sentence for each of the first findings, the gravest first, and unless one is wrong the verdict."""
    name, findings = quoted(proof.request.candidate.name), by_grade(proof.findings)
    shown = [f"{name}: {finding.grade}. {finding.level}: {finding.sentence}" for finding in findings[:SHOWN]]
    more = len(findings) - SHOWN
    rest = [f"... and {more} more findings"] if more > 0 else []
    return "\n".join([*shown, *rest, *([] if proof.grade is Grade.WRONG else [_closing(proof, name)])])


def _closing(proof: Proof, name: str) -> str:
    levels = ", ".join(f"{level} ({seconds:.1f} s)" for level, seconds in proof.seconds.items())
    return {
        Grade.RIGHT: f"{name}: right, as far as {levels} can tell.",
        Grade.DIFFERS: f"{name}: right but for differences that change nothing, as far as {levels} can tell.",
        Grade.CANNOT_TELL: f"{name}: not proven. As far as {levels} can tell, nothing is wrong.",
    }[proof.grade]


def _weights(tensors: list[TensorError]) -> str:
    grouped: dict[str, list[TensorError]] = defaultdict(list)
    for tensor in tensors:
        grouped[tensor.type].append(tensor)
    rows = [
        (name, len(group), units.size(sum(t.nbytes for t in group)), f"{_rms(group):.3g}",
         f"{min(t.cosine for t in group):.7f}", f"{max(t.row_rms for t in group):.3g}",
         f"{max(t.peak for t in group):.3g}")
        for name, group in grouped.items()
    ]  # fmt: skip
    header = ("type", "tensors", "size", "RMS error", "least cosine", "worst row", "worst block")
    return table(header, rows, right=",".join(header[1:]))


def _rms(group: Iterable[TensorError]) -> float:
    error, size = (sum(tensor.sums[i] for tensor in group) for i in (0, 1))
    return float((error / size) ** 0.5) if size else 0.0


def worst(tensors: list[TensorError]) -> tuple[tuple[str, ...], Sequence[tuple[str, ...]]]:
    """Return header and rows of a table of the tensors with the largest errors."""
    shown = sorted(tensors, key=lambda tensor: -tensor.rms)[:SHOWN]
    rows = [(t.name, t.type, f"{t.rms:.3g}", f"{t.cosine:.7f}", f"{t.row_rms:.3g}", f"{t.peak:.3g}") for t in shown]
    return ("worst tensors", "type", "RMS error", "cosine", "worst row", "worst block"), rows


def _layers(what: str, layers: list[LayerAgreement]) -> str:
    rows = [
        (
            result.layer,
            result.type,
            f"{result.measured.cosine:.8f}",
            f"{result.measured.wmape:.3g}",
            f"{result.measured.mse:.3g}",
        )
        for result in layers
    ]
    return table((what, "coarsest type", "cosine", "WMAPE", "MSE"), rows, right="cosine,WMAPE,MSE")


def score_rows(scores: Scores) -> list[tuple[str, object]]:
    """Return the measures of the predictions and their values, an estimate with its standard error."""
    reference, candidate = scores.perplexities()
    shift, root = scores.probability_shift()
    return [
        ("scored tokens", scores.kld.size),
        ("perplexity of the reference", reference),
        ("perplexity of the candidate", candidate),
        ("ln(candidate / reference)", scores.ratio()),
        ("mean KL divergence", scores.divergence()),
        *((f"KL divergence, {name}", f"{value:.6g}") for name, value in scores.percentiles().items()),
        ("mean Δp", shift),
        ("RMS Δp", root),
        ("same top token", scores.top_agreement()),
    ]


def choice_rows(layers: Iterable[LayerAgreement]) -> list[tuple[object, ...]]:
    """Return how far both sides choose the same tokens, a row per layer with an indexer."""
    found = ((result.layer, result.choice) for result in layers if result.choice is not None)
    return [
        (layer, c.sets, c.same, f"{100 * c.common:.2f} %", f"{c.scores.cosine:.8f}", f"{c.scores.wmape:.3g}")
        for layer, c in found
    ]


def predicted_title(distance: int) -> str:
    """Return what a prediction layer's table is called."""
    return f"prediction {distance} tokens ahead"


def exact_rows(found: Iterable[Sameness]) -> list[tuple[object, ...]]:
    """Return how much of the tensors of each type is what the encoder writes."""
    grouped: dict[str, list[Sameness]] = defaultdict(list)
    for same in found:
        grouped[same.type].append(same)
    return [
        (name, len(group), sum(not same.changed for same in group), sum(same.changed for same in group))
        for name, group in grouped.items()
    ]


def engine_rows(results: Iterable[EngineAgreement]) -> list[tuple[object, ...]]:
    """Return what llama.cpp says beside our forward pass, a row per prompt."""
    return [(r.length, f"{r.difference:.3g}", f"{r.kld:.3g}", "yes" if r.same_top else "no") for r in results]


def content(proof: Proof) -> dict[str, Any]:
    """Return everything as JSON-ready data; docs/verification.md lists every field."""
    request = proof.request
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "version": __version__,
        "request": _request_json(request),
        "reference": str(request.reference),
        "candidate": str(request.candidate),
        "grade": proof.grade,
        "right": proof.right,
        "warnings": list(proof.warnings),
        "findings": [asdict(finding) | {"sentence": finding.sentence} for finding in proof.findings],
        "seconds": proof.seconds,
        "tensors": [_tensor_json(tensor) for tensor in proof.tensors],
        "attention": [_layer_json(result) for result in proof.attention],
        "layers": [_layer_json(result) for result in proof.layers],
        "exact": [asdict(same) for same in proof.exact],
        "engine": [asdict(result) for result in proof.engine],
        "logits": None if proof.scores is None else scores_json(proof.scores),
        "predicted": [scores_json(scores) for scores in proof.predicted],
    }
    if proof.failure is not None:
        found["error"] = str(proof.failure) or type(proof.failure).__name__
    return found


def _request_json(request: Request) -> dict[str, Any]:
    choices = request.choices
    chosen = {"weights": choices.weights, "prefix": choices.prefix, "set": dict(choices.settings)}
    return {name: getattr(request, name) for name in REQUESTED} | chosen | {
        "pad_vocab": request.pad_vocabulary, "limits": list(request.limits.settings),
    }  # fmt: skip


def _tensor_json(tensor: TensorError) -> dict[str, Any]:
    return {
        "name": tensor.name, "part": tensor.part, "type": tensor.type, "bytes": tensor.nbytes, "rms": tensor.rms,
        "cosine": tensor.cosine, "row_rms": tensor.row_rms, "row": asdict(tensor.row_place), "peak": tensor.peak,
        "block": asdict(tensor.peak_place), "special": tensor.special,
    }  # fmt: skip


def _layer_json(result: LayerAgreement) -> dict[str, Any]:
    choice = {} if result.choice is None else {"choice": asdict(result.choice)}
    return {"layer": result.layer, "type": result.type, **asdict(result.measured), **choice}


def scores_json(scores: Scores) -> dict[str, Any]:
    """Return the logits' measures; an estimate as [value, standard error]."""
    reference, candidate = scores.perplexities()
    shift, root = scores.probability_shift()
    estimates = {
        "perplexity_reference": reference, "perplexity_candidate": candidate, "ln_ratio": scores.ratio(),
        "kld": scores.divergence(), "mean_shift": shift, "rms_shift": root, "same_top": scores.top_agreement(),
    }  # fmt: skip
    named = {name: [estimate.value, estimate.error] for name, estimate in estimates.items()}
    return {"tokens": int(scores.kld.size), **named, "kld_percentiles": scores.percentiles()}
