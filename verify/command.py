"""`gguf-mla verify`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from click import Argument, Choice

from gguf_mla.cli.main import Command
from gguf_mla.cli.numbers import CONTEXT, COUNT, Whole
from gguf_mla.cli.options import EITHER, GGUF, PAD_VOCAB, PATH, SMALL, SPOOL, THREADS, ReadingOptions, option
from verify.findings import LEVELS

if TYPE_CHECKING:
    from pathlib import Path

FORMS = (  # as gguf_mla.forward.attention has them
    "vanilla", "absorbed", "pe-first", "expanded-keys", "token-by-token", "paged", "gathered", "union", "vanilla-union",
)  # fmt: skip


@dataclass(frozen=True)
class VerifyOptions:
    """What is compared, over which text, and how it is told."""

    pad_vocab: bool = option(False, "--pad-vocab", **PAD_VOCAB)
    level: str = option(LEVELS[-1], "--level", type=Choice(LEVELS), show_default=True, help="How far to go.")
    text: Path | None = option(  # noqa: RUF009 - it returns a field
        None, "--text", type=PATH, metavar="FILE", help="UTF-8 text to predict  [default: a sample]"
    )
    tokens: Path | None = option(  # noqa: RUF009 - as above
        None, "--tokens", type=PATH, metavar="FILE", help="Token ids instead: .npy, or numbers as text."
    )
    context: int = option(512, "--context", type=Whole(CONTEXT, least=8), show_default=True, help="Tokens per chunk.")
    chunks: int = option(4, "--chunks", type=Whole(COUNT), show_default=True, help="At most so many chunks.")
    form: str = option("absorbed", "--form", type=Choice(FORMS), show_default=True, help="The candidate's attention.")
    limits: tuple[str, ...] = option(
        (), "--limit", multiple=True, metavar="[TYPE.]NAME=X", help="Change a limit: Q4_K.rms=0.2, kld=0.5."
    )
    exact: bool = option(
        False, "--exact", is_flag=True, help="Encode REFERENCE with CANDIDATE's types and compare the bytes, too."
    )
    imatrix: Path | None = option(  # noqa: RUF009 - as above
        None, "--imatrix", type=SMALL, metavar="FILE",
        help="The importance that CANDIDATE was made with, for --exact.",
    )  # fmt: skip
    engine: str | None = option(
        None, "--engine", type=Choice(["llama.cpp"]), help="Then ask a real engine about CANDIDATE, too."
    )
    spool: str | None = option(None, "--spool", **SPOOL)
    threads: int | None = option(None, "--threads", **THREADS)
    device: str = option(
        "cpu", "--device", show_default=True, metavar="NAME",
        help="cuda or cuda:N: the models are computed there, once it has coded both files' types like the CPU.",
    )  # fmt: skip
    resume: Path | None = option(  # noqa: RUF009 - as above
        None, "--resume", type=PATH, metavar="DIR",
        help="Keep what is proven in DIR, and go on from it; gone at the end.",
    )  # fmt: skip
    report: Path | None = option(  # noqa: RUF009 - as above
        None, "--report", type=PATH, metavar="OUT.html", help="Write everything as one page."
    )
    as_json: bool = option(False, "--json", is_flag=True, help="Print everything as JSON.")
    strict: bool = option(False, "--strict", is_flag=True, help="Status 1 for a difference that changes nothing, too.")
    quiet: bool = option(False, "--quiet", is_flag=True, help="No progress, and only the verdict.")


verify = Command(
    "verify.run:verify",
    """Prove that the GGUF file CANDIDATE computes what REFERENCE, a checkpoint or another GGUF file, does.

    Levels, cheap first: structure (metadata, tokenizer, tensor table), weights (every value against what its type
    should cost), attention (each layer on the same input), logits (perplexity and KL divergence). The first that finds
    something wrong ends the proof with status 1 and names what is to blame.
    """,
    Argument(["reference"], type=EITHER),
    Argument(["candidate"], type=GGUF),
    wanted=VerifyOptions,
    reading=ReadingOptions,
)
