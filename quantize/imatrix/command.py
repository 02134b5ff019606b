"""`gguf-mla imatrix`, and its tools `show`, `merge` and `convert`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
from click import Argument, Choice, Option

from gguf_mla.cli import numbers
from gguf_mla.cli.main import Command
from gguf_mla.cli.options import (
    ADDRESS,
    DEVICE,
    EITHER,
    ENGINE,
    PATH,
    SMALL,
    SPOOL,
    THREADS,
    THREADS_ENGINE,
    ReadingOptions,
    option,
)

if TYPE_CHECKING:
    from pathlib import Path

OVERWRITE = Option(["--overwrite"], is_flag=True, help="Replace an output that exists.")
JSON = Option(["--json", "as_json"], is_flag=True, help="Print everything as JSON.")
REPORT = Option(["--report"], type=PATH, metavar="OUT.html", help="Write the coverage as a page: layers by experts.")


@dataclass(frozen=True)
class MatrixOptions:
    """Over which text a model is run, and what is collected."""

    texts: tuple[Path, ...] = option(
        (), "--text", type=PATH, multiple=True, metavar="FILE",
        help="UTF-8 text; a directory: all files in it; -: standard input. Repeatable.",
    )  # fmt: skip
    tokens: Path | None = option(  # noqa: RUF009 - it returns a field
        None, "--tokens", type=PATH, metavar="FILE", help="Token ids instead: .npy, or numbers as text."
    )
    context: int = option(
        512, "--context", type=numbers.Whole(numbers.CONTEXT, least=8), show_default=True, help="Tokens of a chunk."
    )
    chunks: int | None = option(None, "--chunks", type=numbers.Whole(numbers.COUNT), help="At most so many chunks.")
    from_chunk: int = option(
        0, "--from-chunk", type=numbers.Whole(numbers.COUNT, least=0), help="Leave out so many at first."
    )
    parse_special: bool = option(
        False, "--parse-special", is_flag=True, help="Names of control tokens in a text are those tokens."
    )
    process_output: bool = option(False, "--process-output", is_flag=True, help="Collect for the output head, too.")
    mtp: bool = option(False, "--mtp", is_flag=True, help="Run the layers of multi-token prediction, too.")
    no_ppl: bool = option(False, "--no-ppl", is_flag=True, help="Do not compute the perplexity of the text.")
    form: str = option("gguf", "--format", type=Choice(["gguf", "dat"]), show_default=True)
    memory: str | None = option(
        None, "--memory", type=numbers.Size(), metavar="SIZE",
        help="Keep the hidden states in memory if they take at most SIZE, and not in files beside OUT; then a run that "
        "was stopped starts over.",
    )  # fmt: skip
    split_work: str | None = option(
        None, "--split-work", metavar="I/N",
        help="Compute part I of N of the chunks; imatrix merge adds the parts. With --engine ray: N, parts that are "
        "computed at the same time  [default: as many as there are workers].",
    )  # fmt: skip
    seen: int | None = option(
        None, "--min-tokens-per-expert", type=numbers.Whole(numbers.COUNT), metavar="N",
        help="Go on with --more-text until every expert has seen N tokens, or the text ends.",
    )  # fmt: skip
    more_text: tuple[Path, ...] = option(
        (), "--more-text", type=PATH, multiple=True, metavar="FILE", help="What to go on with. Repeatable."
    )
    spool: str | None = option(None, "--spool", **SPOOL)
    threads: int | None = option(None, "--threads", **THREADS)
    device: str = option("cpu", "--device", **DEVICE)
    engine: str = option(THREADS_ENGINE, "--engine", **ENGINE)
    address: str | None = option(None, "--address", **ADDRESS)
    overwrite: bool = option(False, "--overwrite", is_flag=True, help="Replace an output that exists.")
    no_resume: bool = option(
        False, "--no-resume", is_flag=True, help="Start over instead of going on with an unfinished output."
    )
    report: Path | None = option(  # noqa: RUF009 - as above
        None, "--report", type=PATH, metavar="OUT.html", help="Write the coverage as a page: layers by experts."
    )
    quiet: bool = option(False, "--quiet", is_flag=True, help="No progress and no summary.")
    as_json: bool = option(False, "--json", is_flag=True, help="Print everything as JSON.")


make = Command(
    "quantize.imatrix.run:make",
    """Run MODEL, a checkpoint or a GGUF file, over a text, and write its importance matrix OUT.

    The model is read layer by layer, whatever its size; stopped at any time, the same command goes on. OUT is
    NAME.imatrix.gguf in the current directory unless it is given. MODEL may be OWNER/NAME or OWNER/NAME:TAG on the hub.
    Tools: imatrix show, imatrix merge, imatrix convert.
    """,
    Argument(["model"], type=EITHER),
    Argument(["out"], type=PATH, required=False),
    options=MatrixOptions,
    reading=ReadingOptions,
)

show = Command(
    "quantize.imatrix.tools:show",
    "Show what is in the importance matrix FILE: which experts saw how many tokens, and what the columns are like.",
    Argument(["files"], metavar="FILE...", type=SMALL, nargs=-1, required=True),
    Option(["--tensors"], is_flag=True, help="List every tensor with its statistics."),
    REPORT,
    JSON,
)

merge = Command(
    "quantize.imatrix.tools:merge",
    """Add the matrices FILE..., or the parts that --split-work has made, into OUT.

    The order of the files has no influence on the sums. Parts make a matrix when no chunk is missing, a part otherwise.
    """,
    Argument(["out"], type=PATH),
    Argument(["files"], metavar="FILE...", type=SMALL, nargs=-1, required=True),
    OVERWRITE,
)

convert = Command(
    "quantize.imatrix.tools:convert",
    """Write the matrix FILE in the form that the name of OUT ends with, .gguf or .dat, and with other names.

    mla: attn_kv_b also serves attn_v_b; legacy: attn_v_b becomes attn_kv_b; ik: one row for all heads of attn_k_b and
    attn_v_b, as ik_llama.cpp has them.
    """,
    Argument(["file"], type=SMALL),
    Argument(["out"], type=PATH),
    Option(["--names"], type=Choice(["mla", "legacy", "ik"]), help="Whose names, if others are wanted."),
    Option(["--heads"], type=numbers.Whole(numbers.COUNT), help="With --names: how many heads the model has."),
    OVERWRITE,
)


class Imatrix(click.Group):
    """A command that makes a matrix, unless its first word is one of its tools."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read a line that names no tool as one for the command itself."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [make.name or "", *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the options of the command, and its tools."""
        make.format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the tools."""
        return [name for name in super().list_commands(ctx) if name != make.name]


imatrix = Imatrix(
    "imatrix", help=make.help, subcommand_metavar="MODEL [OUT] [OPTIONS]", commands=[make, show, merge, convert]
)
