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

    from gguf_mla.cli.options import ReadingOptions
    from gguf_mla.files.readable import AnyPath
    from quantize.imatrix.command import MatrixOptions
    from quantize.imatrix.coverage import Coverage
    from quantize.imatrix.job import Outcome


def make(model: AnyPath, out: Path | None, options: MatrixOptions, reading: ReadingOptions) -> None:
    """Make an importance matrix, or a part of one."""
    opened = Opened(Asked(model, out, options, reading))
    if options.engine == RAY:
        from quantize.imatrix import on_cluster  # noqa: PLC0415 - few have one

        work = opened.work()
        outcome = on_cluster.make(opened, work)
    else:
        work = opened.work(options.split_work)
        outcome = _here(opened, work)
    _tell(work, outcome, options, opened.inputs)


def _here(opened: Opened, work: Work) -> Outcome:
    path, options, how = opened.asked.path, opened.asked.options, opened.how(work)
    if options.seen is None and options.form == "gguf":
        return _run(work, path, how, quiet=options.quiet)
    goal = Goal(path, options.form, options.seen or 0, how.inputs, options.no_resume, options.overwrite)
    return _in_rounds([work, *opened.more()], goal, how, quiet=options.quiet)


def _say(said: str, quiet: bool) -> None:
    if not quiet:
        click.echo(said, err=True)


def _run(work: Work, out: Path, how: How, *, quiet: bool) -> Outcome:
    try:
        with progress(out.name, work.layers, "layers", quiet=quiet) as bar:
            return collect(work, out, replace(how, progress=bar.update))
    except RunStopped as stop:
        raise Interrupted(*_stopped(stop)) from None


def _in_rounds(works: Sequence[Work], goal: Goal, how: How, *, quiet: bool) -> Outcome:
    def computed(work: Work, out: Path) -> Outcome:
        return _run(work, out, how, quiet=quiet)

    return in_rounds(as_rounds(works, how), goal, computed, lambda said: _say(said, quiet))


def _stopped(stop: RunStopped) -> tuple[str, ...]:
    if stop.done is None:
        return ()
    return f"{stop.done} of {stop.total} layers are on the disk", "Run the same command again to go on from there"


def _tell(work: Work, outcome: Outcome, options: MatrixOptions, read: Sequence[AnyPath]) -> None:
    """Say what was done, and what the experts have seen."""
    covered = _covered(work, outcome.path)
    if options.report is not None:
        coverage.write_page(options.report, covered, outcome.path.name, [outcome.path])
    if options.as_json:
        answer(inputs=read, stages=outcome.seconds, matrix=result(work, outcome, covered))
    elif not options.quiet:
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
