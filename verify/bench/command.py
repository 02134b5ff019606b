"""`gguf-mla bench attention`."""

from __future__ import annotations

from click import Option

from gguf_mla.cli.main import Command
from gguf_mla.cli.numbers import CONTEXT, Whole
from gguf_mla.cli.options import PATH

attention = Command(
    "verify.bench.run:attention",
    """Compare vanilla and absorbed attention: operations, bytes and time, with DeepSeek's head sizes.

    With --sparse: how many tokens batches of queries choose together, and the bytes that masking and gathering read.
    """,
    Option(
        ["--heads", "count"], type=Whole(1024), default=16, show_default=True, help="Heads to measure with; V3 has 128."
    ),
    Option(
        ["--cached"],
        type=Whole(CONTEXT),
        multiple=True,
        help="Cached tokens  [default: 1024, 4096; sparse: 4096, 16384]",
    ),
    Option(["--queries"], type=Whole(CONTEXT), multiple=True, help="Queries at once  [default: 1 to 512]"),
    Option(["--sparse"], is_flag=True, help="How much of the cache sparse attention reads, instead."),
    Option(["--model"], type=PATH, help="Sparse: a checkpoint or GGUF file  [default: synthetic texts]"),
    Option(["--tokens"], type=PATH, metavar="FILE", help="Sparse: token ids for the model  [default: a sample]"),
    Option(
        ["--top-k"],
        type=Whole(CONTEXT),
        help="Sparse: tokens a query of the model attends to  [default: its own, or an eighth]",
    ),
    Option(
        ["--device"],
        default="cpu",
        show_default=True,
        metavar="NAME",
        help="cuda or cuda:N: its kernels against what its memory and its arithmetic allow, instead.",
    ),
    Option(["--json", "as_json"], is_flag=True, help="Print JSON instead of a table."),
)
