"""`gguf-mla verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from verify.findings import LEVELS

if TYPE_CHECKING:
    from verify.job import Bar, Proof

_PATH = click.Path(path_type=Path)
FORMS = (  # as gguf_mla.forward.attention has them
    "vanilla", "absorbed", "pe-first", "token-by-token", "paged", "gathered", "union", "vanilla-union",
)  # fmt: skip


@click.command()
@click.argument("reference", type=click.Path(path_type=Path, exists=True))
@click.argument("candidate", type=click.Path(path_type=Path, exists=True))
@click.option("--level", type=click.Choice(LEVELS), default=LEVELS[-1], show_default=True, help="How far to go.")
@click.option("--text", type=_PATH, metavar="FILE", help="UTF-8 text to predict  [default: a sample]")
@click.option("--tokens", type=_PATH, metavar="FILE", help="Token ids instead: .npy, or numbers as text.")
@click.option("--context", type=click.IntRange(min=8), default=512, show_default=True, help="Tokens per chunk.")
@click.option("--chunks", type=click.IntRange(min=1), default=4, show_default=True, help="At most so many chunks.")
@click.option(
    "--form", type=click.Choice(FORMS), default="absorbed", show_default=True, help="The candidate's attention."
)
@click.option(
    "--limit", "settings", multiple=True, metavar="[TYPE.]NAME=X", help="Change a limit: Q4_K.rms=0.2, kld=0.5."
)
@click.option("--engine", type=click.Choice(["llama.cpp"]), help="Then ask a real engine about CANDIDATE, too.")
@click.option("--threads", type=click.IntRange(min=1), help="Worker threads  [default: all cores]")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="cuda or cuda:N: the candidate attends there, once it has coded both files' types like the CPU.",
)
@click.option("--report", type=_PATH, metavar="OUT.html", help="Write everything as one page.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--quiet", is_flag=True, help="No progress, and only the verdict.")
def verify(
    reference: Path,
    candidate: Path,
    level: str,
    text: Path | None,
    tokens: Path | None,
    context: int,
    chunks: int,
    form: str,
    settings: tuple[str, ...],
    engine: str | None,
    threads: int | None,
    device: str,
    report: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Prove that the GGUF file CANDIDATE computes what REFERENCE, a checkpoint or another GGUF file, does.

    Levels, cheap first: structure (metadata, tokenizer, tensor table), weights (every value against what its type
    should cost), attention (each layer on the same input), logits (perplexity and KL divergence). The first that finds
    something ends the proof with status 1 and names what is to blame.
    """
    from gguf_mla.stream.execute import default_threads  # noqa: PLC0415 - `--help` must not pay for numpy
    from verify.device import check_device  # noqa: PLC0415
    from verify.job import Request, prove  # noqa: PLC0415
    from verify.limits import Limits  # noqa: PLC0415

    checked = check_device(device, reference, candidate)
    if checked and not quiet:
        click.echo(checked, err=True)
    request = Request(
        reference=reference,
        candidate=candidate,
        level=level,
        text=text,
        tokens=tokens,
        context=context,
        chunks=chunks,
        form=form,
        device=device,
        limits=Limits().with_settings(settings),
        threads=threads or default_threads(),
        engine=engine is not None,
    )
    proof = prove(request, _bar(quiet=quiet))
    _write(proof, report, as_json=as_json, quiet=quiet)
    if not proof.right:
        raise click.exceptions.Exit(1)


def _bar(*, quiet: bool) -> Bar:
    from tqdm import tqdm  # noqa: PLC0415

    def bar(name: str, total: int) -> tqdm[None]:
        scaled = {"unit": "B", "unit_scale": True, "unit_divisor": 1024} if name == "weights" else {"unit": "layer"}
        # disable=None: only where standard error is a terminal
        return tqdm(total=total, desc=name, leave=False, disable=quiet or None, **scaled)

    return lambda name, total: bar(name, total).update


def _write(proof: Proof, report: Path | None, *, as_json: bool, quiet: bool) -> None:
    from verify.report import terminal  # noqa: PLC0415

    if report:
        from verify.report.page import write_page  # noqa: PLC0415

        write_page(proof, report)
    if as_json:
        click.echo(terminal.as_json(proof))
    else:
        click.echo(terminal.verdict(proof) if quiet else terminal.text(proof))
