"""What `gguf-mla imatrix` does: open the model, read the text, collect, report."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from gguf_mla import units
from gguf_mla.cli.document import answer
from gguf_mla.cli.failures import Interrupted
from gguf_mla.cli.progress import progress
from gguf_mla.errors import InputError
from gguf_mla.files import platform
from gguf_mla.forward.on_device import form_on, place_on
from gguf_mla.forward.opening import files_of, open_weights
from gguf_mla.importance.matrix import read_imatrix
from gguf_mla.importance.partial import About, open_part
from gguf_mla.sources.checkpoint import Choices
from gguf_mla.sources.recognise import settings
from gguf_mla.text.calibration import STDIN, Cut, dataset, expanded
from gguf_mla.version import __version__
from quantize.imatrix import coverage
from quantize.imatrix.entries import entries
from quantize.imatrix.job import FORM, How, RunStopped, Work, collect
from quantize.imatrix.model import name_of, reader_of
from quantize.imatrix.rounds import Goal, as_rounds, covered_by, in_rounds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from gguf_mla.files.readable import AnyPath
    from gguf_mla.forward.tensors import CheckpointWeights, GgufWeights
    from gguf_mla.text.calibration import Reader
    from quantize.imatrix.coverage import Coverage
    from quantize.imatrix.job import Outcome

    Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Wanted:
    """What of a model is run and collected."""

    output: bool
    prediction: bool
    perplexity: bool


def make(
    model: AnyPath,
    out: Path | None,
    texts: tuple[Path, ...],
    tokens: Path | None,
    context: int,
    chunks: int | None,
    from_chunk: int,
    parse_special: bool,
    process_output: bool,
    mtp: bool,
    no_ppl: bool,
    form: str,
    memory: str | None,
    split_work: str | None,
    wanted: int | None,
    more_text: tuple[Path, ...],
    weights: str | None,
    prefix: str | None,
    set_keys: tuple[str, ...],
    threads: int | None,
    device: str,
    overwrite: bool,
    no_resume: bool,
    report: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make an importance matrix, or a part of one."""
    platform.return_large_blocks()
    place, attend = place_on(device, threads or platform.cores()), form_on(device, FORM)
    _check(split_work, wanted, more_text, form)
    opened = open_weights(model, Choices(weights, prefix, settings.parse(set_keys)))
    if mtp and not opened.model.predictors:
        raise InputError("--mtp is for a model with multi-token prediction", file=model, found="no such layer")
    reader = reader_of(opened, special=parse_special)
    cut = Cut(context, chunks, from_chunk)
    found = _tokens(reader, texts, tokens, cut)
    names = [dataset(path) for path in (*texts, *([tokens] if tokens else []))]
    asked = Wanted(process_output, mtp, not no_ppl)
    work = work_of(opened, found, asked, names, split_work)
    given = [path for path in expanded((*texts, *more_text)) if path != STDIN and path.is_file()]
    read = [*given, *([tokens] if tokens and tokens.is_file() else [])]
    in_memory = memory is not None and work.beside_bytes <= units.parse_size(memory)
    how = How([*files_of(opened), *read], place, attend, in_memory, no_resume, overwrite)
    path = out or Path(f"{name_of(model)}.imatrix.{form}")
    if wanted is None and form == "gguf":
        outcome = _run(work, path, how, quiet=quiet)
    else:
        more = [dataset(text) for text in more_text]
        tokens_left = reader.texts(more_text) if more_text else np.zeros(0, np.int64)
        rest = cut_rest(tokens_left, found.shape, reader.bos)
        works = as_rounds((work, *(work_of(opened, r, asked, more) for r in rest)), how)
        goal = Goal(path, form, wanted or 0, how.inputs, no_resume, overwrite)
        outcome = in_rounds(works, goal, lambda w, to: _run(w, to, how, quiet=quiet), lambda said: _say(said, quiet))
    _tell(work, outcome, report, how.inputs, quiet=quiet, as_json=as_json)


def _check(split_work: str | None, wanted: int | None, more_text: tuple[Path, ...], form: str) -> None:
    if split_work and (wanted or form != "gguf"):
        raise InputError("--split-work makes a part of a matrix in GGUF form, and goes with neither rounds nor .dat")
    if (wanted is None) != (not more_text):
        raise InputError("--min-tokens-per-expert and --more-text go together", remedy="Give both, or neither")


def cut_rest(tokens: Numbers, shape: tuple[int, ...], bos: int | None) -> list[Numbers]:
    """Return rounds of at most `shape` chunks of more tokens; what is left of the last chunk is dropped."""
    count, context = shape
    if tokens.size < 2 * context:
        return []
    chunks = Cut(context).chunks(tokens, bos)
    return [chunks[start : start + count] for start in range(0, len(chunks), count)]


def _say(said: str, quiet: bool) -> None:
    if not quiet:
        click.echo(said, err=True)


def _tokens(reader: Reader, texts: tuple[Path, ...], tokens: Path | None, cut: Cut) -> Numbers:
    """Return the chunks [B, context] that the model is run over."""
    if bool(texts) == (tokens is not None):
        raise InputError("the model needs a text to be run over", remedy="Give either --text or --tokens")
    return cut.chunks(reader.texts(texts) if tokens is None else reader.ids(tokens), reader.bos)


def work_of(
    weights: CheckpointWeights | GgufWeights,
    chunks: Numbers,
    wanted: Wanted,
    names: Sequence[str],
    split_work: str | None = None,
) -> Work:
    """Return the work on all chunks [B, context], or on part I/N of them."""
    found = entries(weights, output=wanted.output, prediction=wanted.prediction)
    start, stop = _share(split_work, len(chunks))
    digest = hashlib.sha256(np.ascontiguousarray(chunks).tobytes())
    digest.update(repr((__version__, chunks.shape, weights.model, sorted(found))).encode())
    predictors = weights.model.predictors if wanted.prediction else 0
    about = About(digest.hexdigest(), len(chunks), ((start, stop),), tuple(names), chunks.shape[1], predictors)
    return Work(weights, chunks[start:stop], found, about, split_work is not None, wanted.prediction, wanted.perplexity)


def _share(split_work: str | None, count: int) -> tuple[int, int]:
    """Return the first and the one after the last chunk of part I of N."""
    if split_work is None:
        return 0, count
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", split_work)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts or parts > count:
        expected = f"I/N with I from 1 to N, and N at most the {count} chunks"
        raise InputError("--split-work cannot be done", expected=expected, found=split_work)
    return (part - 1) * count // parts, part * count // parts


def _run(work: Work, out: Path, how: How, *, quiet: bool) -> Outcome:
    try:
        with progress(out.name, work.layers, "layers", quiet=quiet) as bar:
            return collect(work, out, replace(how, progress=bar.update))
    except RunStopped as stop:
        raise Interrupted(*_stopped(stop)) from None


def _stopped(stop: RunStopped) -> tuple[str, ...]:
    if not stop.done:
        return ()
    return f"{stop.done} of {stop.total} layers are on the disk", "Run the same command again to go on from there"


def _tell(
    work: Work, outcome: Outcome, report: Path | None, read: Sequence[AnyPath], *, quiet: bool, as_json: bool
) -> None:
    """Say what was done, and what the experts have seen."""
    covered = _covered(work, outcome.path)
    if report is not None:
        coverage.write_page(report, covered, outcome.path.name, [outcome.path])
    if as_json:
        answer(inputs=read, stages=outcome.seconds, matrix=result(work, outcome, covered))
    elif not quiet:
        click.echo("\n".join(_sentences(work, outcome, covered)))


def _covered(work: Work, path: Path) -> Coverage:
    if work.partial:
        return covered_by([open_part(path)])
    return coverage.of_matrix(read_imatrix([path], literal=True))


def _sentences(work: Work, outcome: Outcome, covered: Coverage) -> Iterator[str]:
    estimate, chunks, context = outcome.estimate, outcome.chunks, work.chunks.shape[1]
    scored = "" if estimate is None else f"; perplexity {estimate[0]:.4f} ± {estimate[1]:.2g}"
    yield f"{outcome.path}: {len(work.entries)} tensors, {chunks} chunks of {context} tokens{scored}"
    if covered.layers:
        yield coverage.summary(covered)
    if work.partial and work.about.chunks < work.about.total:
        yield f"It is a part: `gguf-mla imatrix merge` adds it to the others of {work.about.total} chunks."


def result(work: Work, outcome: Outcome, covered: Coverage) -> dict[str, Any]:
    """Return what was done, as JSON has it."""
    estimate = outcome.estimate
    return {
        "path": str(outcome.path),
        "chunks": outcome.chunks,
        "context": work.chunks.shape[1],
        "tensors": len(work.entries),
        "layers": work.layers,
        "stages_taken_over": outcome.taken_over,
        "perplexity": estimate and {"value": estimate[0], "error": estimate[1], "chunks": outcome.perplexity.running()},
        "experts": coverage.as_data(covered),
        "state_bytes": work.state_bytes,
    }
