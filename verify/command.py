"""`gguf-mla verify`."""

from __future__ import annotations

from click import Argument, Choice, Option

from gguf_mla.cli.main import Command
from gguf_mla.cli.numbers import CONTEXT, COUNT, Whole
from gguf_mla.cli.options import EITHER, GGUF, PAD_VOCAB, PATH, PREFIX, SET, SMALL, SPOOL, THREADS, WEIGHTS
from verify.findings import LEVELS

FORMS = (  # as gguf_mla.forward.attention has them
    "vanilla", "absorbed", "pe-first", "token-by-token", "paged", "gathered", "union", "vanilla-union",
)  # fmt: skip

verify = Command(
    "verify.run:verify",
    """Prove that the GGUF file CANDIDATE computes what REFERENCE, a checkpoint or another GGUF file, does.

    Levels, cheap first: structure (metadata, tokenizer, tensor table), weights (every value against what its type
    should cost), attention (each layer on the same input), logits (perplexity and KL divergence). The first that finds
    something wrong ends the proof with status 1 and names what is to blame.
    """,
    Argument(["reference"], type=EITHER),
    Argument(["candidate"], type=GGUF),
    Option(["--pad-vocab"], **PAD_VOCAB),
    Option(["--weights"], **WEIGHTS),
    Option(["--prefix"], **PREFIX),
    Option(["--set", "set_keys"], **SET),
    Option(["--level"], type=Choice(LEVELS), default=LEVELS[-1], show_default=True, help="How far to go."),
    Option(["--text"], type=PATH, metavar="FILE", help="UTF-8 text to predict  [default: a sample]"),
    Option(["--tokens"], type=PATH, metavar="FILE", help="Token ids instead: .npy, or numbers as text."),
    Option(["--context"], type=Whole(CONTEXT, least=8), default=512, show_default=True, help="Tokens per chunk."),
    Option(["--chunks"], type=Whole(COUNT), default=4, show_default=True, help="At most so many chunks."),
    Option(["--form"], type=Choice(FORMS), default="absorbed", show_default=True, help="The candidate's attention."),
    Option(
        ["--limit", "limits"], multiple=True, metavar="[TYPE.]NAME=X", help="Change a limit: Q4_K.rms=0.2, kld=0.5."
    ),
    Option(["--exact"], is_flag=True, help="Encode REFERENCE with CANDIDATE's types and compare the bytes, too."),
    Option(["--imatrix"], type=SMALL, metavar="FILE", help="The importance that CANDIDATE was made with, for --exact."),
    Option(["--engine"], type=Choice(["llama.cpp"]), help="Then ask a real engine about CANDIDATE, too."),
    Option(["--spool"], expose_value=False, **SPOOL),
    Option(["--threads"], **THREADS),
    Option(
        ["--device"],
        default="cpu",
        show_default=True,
        metavar="NAME",
        help="cuda or cuda:N: the models are computed there, once it has coded both files' types like the CPU.",
    ),
    Option(
        ["--resume"], type=PATH, metavar="DIR", help="Keep what is proven in DIR, and go on from it; gone at the end."
    ),
    Option(["--report"], type=PATH, metavar="OUT.html", help="Write everything as one page."),
    Option(["--json", "as_json"], is_flag=True, help="Print everything as JSON."),
    Option(["--strict"], is_flag=True, help="Status 1 for a difference that changes nothing, too."),
    Option(["--quiet"], is_flag=True, help="No progress, and only the verdict."),
)
