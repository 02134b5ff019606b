"""`gguf-mla plan`, `work` and `finish`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click import Argument, Option

from gguf_mla import discovery
from gguf_mla.cli import numbers, speech
from gguf_mla.cli.main import GROUP, Command
from gguf_mla.cli.options import PATH, THREADS

if TYPE_CHECKING:
    from pathlib import Path

PLANNED = ("convert", "downgrade", "quantize", "upgrade")
QUIET = Option(["--quiet"], is_flag=True, help="No progress and no summary.")
JSON = Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON.")
PLAN = Argument(["plan"], type=PATH)


class Planned(click.Command):
    """A command that writes its plan to a file, and nothing else."""

    def __init__(self, command: Command) -> None:
        out = Option(
            ["--out", "plan_file"], type=PATH, required=True, metavar="PLAN.json", help="Where the plan is written."
        )
        size = Option(
            ["--job-size"], type=numbers.Size(), metavar="SIZE",
            help="The largest job, at most 1GiB  [default: what makes 4096 jobs, 32MiB at least]",
        )  # fmt: skip
        about = f"Write the plan of `gguf-mla {command.name}` with these arguments and options to a file."
        super().__init__(command.name, params=[out, size, *command.params], help=about, callback=self._call)
        self._command = command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options, once it is known how an error in them is to be told."""
        speech.note(ctx, self, args)
        return super().parse_args(ctx, args)

    def _call(self, plan_file: Path, job_size: str | None, **values: Any) -> None:
        from gguf_mla.cli import sharing  # noqa: PLC0415 - help needs none of it

        sharing.plan(self._command, values, plan_file, job_size)


class Plans(click.Group):
    """The commands that can be planned, under their own names."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, without loading any."""
        return sorted({*super().list_commands(ctx), *PLANNED})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command; None if there is none of that name."""
        if cmd_name not in PLANNED:
            return super().get_command(ctx, cmd_name)
        command = discovery.load(next(iter(discovery.plugins(GROUP, cmd_name))))
        return Planned(command)


plan = Plans(
    "plan",
    help="""Plan a command for many machines: its work is cut into jobs, and written to a file.

    gguf-mla work does them, anywhere and in any order; gguf-mla finish completes the files.
    """,
)

plan.add_command(
    Command(
        "gguf_mla.cli.sharing:show",
        """Show what PLAN comes to with so many workers: how even the shares are, and what the storage has to give.

        The times are from the plan's costs, not measured.
        """,
        PLAN,
        Option(["--workers"], default="16,64,256", show_default=True, metavar="NUMBERS", help="How many workers."),
        Option(["--cores"], type=numbers.Whole(numbers.THREADS), default=16, show_default=True, help="Of each worker."),
        JSON,
    )
)

work = Command(
    "gguf_mla.cli.sharing:work",
    """Do a share of the jobs of PLAN, all of them unless a rank or numbers are given.

    Any number of machines that share a folder may do so at the same time. A share that was stopped is done again by the
    same command; jobs that are done already are only read.
    """,
    PLAN,
    Option(["--rank"], type=numbers.Whole(numbers.COUNT, least=0), help="Which worker this is, from 0."),
    Option(["--of"], type=numbers.Whole(numbers.COUNT), help="How many workers there are."),
    Option(["--jobs"], metavar="NUMBERS", help="Do these jobs: 3,7-9."),
    Option(["--threads"], **THREADS),
    Option(
        ["--device"], metavar="NAME", help="Where to compute: cpu, cuda (all GPUs) or cuda:N  [default: the plan's]"
    ),
    Option(["--bandwidth"], type=numbers.Size(), metavar="SIZE", help="Read at most SIZE a second from the hub (50M)."),
    QUIET,
    JSON,
)

finish = Command(
    "gguf_mla.cli.sharing:finish",
    """Complete the files of PLAN when all of its jobs are done: compare every byte with the records, and name them.""",
    PLAN,
    Option(["--threads"], **THREADS),
    QUIET,
    JSON,
)
