"""What `gguf-mla verify` does: prove, report, and end with a status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from gguf_mla.files import platform
from gguf_mla.sources.checkpoint import Choices
from gguf_mla.sources.recognise import settings
from verify.device import check_device
from verify.findings import Grade
from verify.job import Request, prove
from verify.limits import Limits
from verify.report import terminal
from verify.report.page import report

if TYPE_CHECKING:
    from gguf_mla.files.readable import Place
    from verify.job import Bar, Proof


def verify(
    reference: Place,
    candidate: Place,
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
    )
    proof = _proven(request, report, quiet=quiet)
    _show(proof, as_json=as_json, quiet=quiet)
    if proof.failure is not None:
        raise proof.failure
    if proof.grade is Grade.WRONG or (strict and proof.grade is Grade.DIFFERS):
        raise click.exceptions.Exit(1)


def _bar(*, quiet: bool) -> Bar:
    def bar(name: str, total: int) -> tqdm[None]:
        scaled = (
            {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
            if name in ("weights", "exact")
            else {"unit": "layer"}
        )
        # disable=None: only where standard error is a terminal
        return tqdm(total=total, desc=name, leave=False, disable=quiet or None, **scaled)

    return lambda name, total: bar(name, total).update


def _proven(request: Request, page: Path | None, *, quiet: bool) -> Proof:
    """Prove, and write the page of it if one is wanted."""
    if page is None:
        return prove(request, _bar(quiet=quiet))
    read = (request.reference, request.candidate, request.text, request.tokens)
    with report(page, [path for path in read if isinstance(path, Path)]) as write:
        proof = prove(request, _bar(quiet=quiet))
        write(proof)
    return proof


def _show(proof: Proof, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        click.echo(terminal.as_json(proof))
    else:
        click.echo(terminal.verdict(proof) if quiet else terminal.text(proof))
