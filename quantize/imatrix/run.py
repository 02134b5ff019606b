"""What `gguf-mla imatrix` does: open the model, read the text, collect, report."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from gguf_mla.cli.document import answer
from gguf_mla.cli.failures import Interrupted
from gguf_mla.cli.options import RAY
from gguf_mla.cli.progress import progress
from gguf_mla.importance.matrix import read_imatrix
from gguf_mla.importance.partial import open_part
from quantize.imatrix import coverage
from quantize.imatrix.asked import Asked, Opened
from quantize.imatrix.job import How, RunStopped, Work, collect
from quantize.imatrix.rounds import Goal, as_rounds, covered_by, in_rounds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gguf_mla.files.readable import AnyPath
    from quantize.imatrix.coverage import Coverage
    from quantize.imatrix.job import Outcome


def make(**values: Any) -> None:
    """Make an importance matrix, or a part of one; `values` are those of Asked."""
    asked = Asked(**values)
    opened = Opened(asked)
    if asked.engine == RAY:
        from quantize.imatrix import on_cluster  # noqa: PLC0415 - few have one

        work = opened.work()
        outcome = on_cluster.make(opened, work)
    else:
        work = opened.work(asked.split_work)
        outcome = _here(opened, work)
    _tell(work, outcome, asked.report, opened.inputs, quiet=asked.quiet, as_json=asked.as_json)


def _here(opened: Opened, work: Work) -> Outcome:
    asked, how = opened.asked, opened.how(work)
    if asked.wanted is None and asked.form == "gguf":
        return _run(work, asked.path, how, quiet=asked.quiet)
    works = as_rounds((work, *opened.more()), how)
    goal = Goal(asked.path, asked.form, asked.wanted or 0, how.inputs, asked.no_resume, asked.overwrite)
    return in_rounds(
        works, goal, lambda w, to: _run(w, to, how, quiet=asked.quiet), lambda said: _say(said, asked.quiet)
    )


def _say(said: str, quiet: bool) -> None:
    if not quiet:
        click.echo(said, err=True)


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
