"""What `gguf-mla verify` does: prove, report, and end with a status."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from gguf_mla import units
from gguf_mla.cli.document import answer
from gguf_mla.cli.failures import Interrupted
from gguf_mla.cli.progress import progress
from gguf_mla.files import platform
from gguf_mla.files.readable import here
from verify.course import ProofInterrupted
from verify.device import check_device
from verify.findings import Grade
from verify.job import Request, prove
from verify.limits import Limits
from verify.report import terminal
from verify.report.page import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gguf_mla.cli.options import ReadingOptions
    from gguf_mla.files.readable import AnyPath
    from verify.command import VerifyOptions
    from verify.course import Bar
    from verify.job import Proof


def verify(reference: AnyPath, candidate: AnyPath, wanted: VerifyOptions, reading: ReadingOptions) -> None:
    """Prove a candidate right or name what is to blame; status 1 for what is wrong, if strict for what differs, too."""
    checked = check_device(wanted.device, reference, candidate)
    if checked and not wanted.quiet:
        click.echo(checked, err=True)
    request = Request(
        reference=reference,
        candidate=candidate,
        choices=reading.choices,
        pad_vocabulary=wanted.pad_vocab,
        level=wanted.level,
        text=wanted.text,
        tokens=wanted.tokens,
        context=wanted.context,
        chunks=wanted.chunks,
        form=wanted.form,
        device=wanted.device,
        limits=Limits().with_settings(wanted.limits),
        threads=wanted.threads or platform.cores(),
        engine=wanted.engine is not None,
        exact=wanted.exact,
        imatrix=wanted.imatrix,
        resume=wanted.resume,
    )
    proof = _proven(request, wanted.report, quiet=wanted.quiet)
    wrong = proof.grade is Grade.WRONG or (wanted.strict and proof.grade is Grade.DIFFERS)
    _show(proof, wanted, status=int(wrong))
    if proof.failure is not None:
        raise proof.failure
    if wrong:
        raise click.exceptions.Exit(1)


def _bar(name: str, *, quiet: bool) -> Bar:
    @contextmanager
    def bar(total: int, done: int) -> Iterator[Callable[[int], object]]:
        with progress(name, total, done=done, quiet=quiet, leave=False) as shown:
            yield shown.update

    return bar


def _proven(request: Request, page: Path | None, *, quiet: bool) -> Proof:
    """Prove, and write the page of it if one is wanted."""
    bar = _bar(request.candidate.name, quiet=quiet)
    try:
        if page is None:
            return prove(request, bar)
        read = (request.reference, request.candidate, request.text, request.tokens)
        with report(page, here(read)) as write:
            proof = prove(request, bar)
            write(proof)
    except ProofInterrupted as stop:
        raise Interrupted(*_interrupted(stop, request)) from None
    return proof


def _interrupted(stop: ProofInterrupted, request: Request) -> tuple[str, str]:
    """Return how far the proof was, and how to go on."""
    done = f"{units.size(stop.done)} of {units.size(stop.total)} were proven"
    if request.resume is not None:
        return done, "Run the same command again to go on from there"
    return done, "Run it with --resume DIR to be able to go on; without, it starts over"


def _show(proof: Proof, wanted: VerifyOptions, status: int) -> None:
    if not wanted.as_json:
        click.echo(terminal.verdict(proof) if wanted.quiet else terminal.text(proof))
        return
    failures = [] if proof.failure is None else [proof.failure]
    answer(
        inputs=(proof.request.reference, proof.request.candidate),
        stages=proof.seconds,
        errors=failures,
        status=None if failures else status,
        **terminal.content(proof),
    )
