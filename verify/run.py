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
from gguf_mla.sources.checkpoint import Choices
from gguf_mla.sources.recognise import settings
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

    from gguf_mla.files.readable import AnyPath
    from verify.course import Bar
    from verify.job import Proof


def verify(
    reference: AnyPath,
    candidate: AnyPath,
    pad_vocab: bool,
    weights: str | None,
    prefix: str | None,
    set_keys: tuple[str, ...],
    level: str,
    text: Path | None,
    tokens: Path | None,
    context: int,
    chunks: int,
    form: str,
    limits: tuple[str, ...],
    exact: bool,
    imatrix: Path | None,
    engine: str | None,
    threads: int | None,
    device: str,
    resume: Path | None,
    report: Path | None,
    as_json: bool,
    strict: bool,
    quiet: bool,
) -> None:
    """Prove a candidate right or name what is to blame; status 1 for what is wrong, if strict for what differs, too."""
    checked = check_device(device, reference, candidate)
    if checked and not quiet:
        click.echo(checked, err=True)
    request = Request(
        reference=reference,
        candidate=candidate,
        choices=Choices(weights, prefix, settings.parse(set_keys)),
        pad_vocabulary=pad_vocab,
        level=level,
        text=text,
        tokens=tokens,
        context=context,
        chunks=chunks,
        form=form,
        device=device,
        limits=Limits().with_settings(limits),
        threads=threads or platform.cores(),
        engine=engine is not None,
        exact=exact,
        imatrix=imatrix,
        resume=resume,
    )
    proof = _proven(request, report, quiet=quiet)
    _show(proof, as_json=as_json, quiet=quiet, strict=strict)
    if proof.failure is not None:
        raise proof.failure
    if proof.grade is Grade.WRONG or (strict and proof.grade is Grade.DIFFERS):
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


def _show(proof: Proof, *, as_json: bool, quiet: bool, strict: bool) -> None:
    if as_json:
        failures = [] if proof.failure is None else [proof.failure]
        wrong = proof.grade is Grade.WRONG or (strict and proof.grade is Grade.DIFFERS)
        answer(
            inputs=(proof.request.reference, proof.request.candidate),
            stages=proof.seconds,
            errors=failures,
            status=None if failures else int(wrong),
            **terminal.content(proof),
        )
    else:
        click.echo(terminal.verdict(proof) if quiet else terminal.text(proof))
