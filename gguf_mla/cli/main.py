"""The `gguf-mla` command.

Its subcommands belong to the jobs; they are found through entry points and loaded when asked for. Loading one loads
click alone: a command is its options, and names the function that does the work.
"""

from __future__ import annotations

import pkgutil
from dataclasses import fields
from importlib.metadata import entry_points
from typing import IO, Any

import click

from gguf_mla.cli.options import click_options
from gguf_mla.errors import GgufMlaError, MachineError
from gguf_mla.version import __version__

GROUP = "gguf_mla.commands"


class Failure(click.ClickException):
    """An explained error on its way to the terminal and the exit status."""

    def __init__(self, error: GgufMlaError) -> None:
        super().__init__(str(error))
        self.status = error.status

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # a class variable of click's
        """The status that the error asks for."""
        return self.status

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the sentence."""
        click.echo(f"gguf-mla: error: {self.message}", err=True, file=file)


class Interrupted(Failure):
    """Ctrl-C: status 130, as shells expect it; what is done, and how to go on."""

    def __init__(
        self, done: str = "nothing was written", remedy: str = "Run the same command again to start over"
    ) -> None:
        super().__init__(GgufMlaError(f"interrupted; {done}", remedy=remedy))
        self.status = 130


class Command(click.Command):
    """A command whose work is elsewhere: in the function `run`, "module:name", which is imported when it is called.

    groups  dataclasses of options; the function gets each as one argument, all other parameters by their names
    """

    def __init__(self, run: str, about: str, *params: click.Parameter, **groups: type[Any]) -> None:
        shared = [option for group in groups.values() for option in click_options(group)]
        name = run.partition(":")[2]
        super().__init__(name, params=[*params, *shared], help=about, callback=self._call)
        self.run, self.groups = run, groups

    def _call(self, **arguments: Any) -> None:
        for name, group in self.groups.items():
            arguments[name] = group(**{field.name: arguments.pop(field.name) for field in fields(group)})
        pkgutil.resolve_name(self.run)(**arguments)


class Installed(click.Group):
    """A group to whose commands the entry points `group` add those of other packages."""

    def __init__(self, *arguments: Any, group: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._group = group

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, without loading any."""
        return sorted({*super().list_commands(ctx), *entry_points(group=self._group).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command; None if there is none of that name."""
        found = entry_points(group=self._group, name=cmd_name)
        return next(iter(found)).load() if found else super().get_command(ctx, cmd_name)


class Commands(Installed):
    """The jobs' commands, whose explained errors become sentences."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command and turn every explained error into its sentence and status."""
        try:
            return super().invoke(ctx)
        except GgufMlaError as error:
            raise Failure(error) from None
        except KeyboardInterrupt:
            raise Interrupted from None
        except RuntimeError as error:
            if isinstance(error.__cause__, KeyboardInterrupt):  # before 3.12, one that came while a class was made
                raise Interrupted from None
            raise
        except MemoryError:
            raise Failure(MachineError("there is not enough memory", remedy="Use fewer --threads")) from None


@click.group(
    cls=Commands, group=GROUP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(__version__, prog_name="gguf-mla")
def main() -> None:
    """DeepSeek-family checkpoints to GGUF: converted, inspected, provably right.

    Exit status: 0 done, 1 a proof found a difference, 2 bad usage or input, 3 the machine failed (disk full, I/O), 130
    interrupted.
    """
