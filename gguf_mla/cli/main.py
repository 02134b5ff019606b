"""The `gguf-mla` command.

Its subcommands belong to the jobs; they are found through entry points and loaded when asked for. Loading one loads
click alone: a command is its options, and names the function that does the work.
"""

from __future__ import annotations

import pkgutil
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from gguf_mla import discovery
from gguf_mla.cli import document, speech
from gguf_mla.cli.failures import Failure, explained
from gguf_mla.cli.options import click_options
from gguf_mla.errors import InputError
from gguf_mla.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

GROUP = "gguf_mla.commands"
OPTIONAL = ("torch", "ray")  # packages that not every command needs, called as what installs them


class Command(click.Command):
    """A command whose work is elsewhere: in the function `run`, "module:name", which is imported when it is called.

    groups  dataclasses of options; the function gets each as one argument, all other parameters by their names
    """

    def __init__(self, run: str, about: str, *params: click.Parameter, **groups: type[Any]) -> None:
        shared = [*(option for group in groups.values() for option in click_options(group)), speech.option()]
        name = run.partition(":")[2]
        super().__init__(name, params=[*params, *shared], help=about, callback=self.call)
        self.run, self.groups = run, groups

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options, once it is known how an error in them is to be told."""
        speech.note(ctx, self, args)
        return super().parse_args(ctx, args)

    def call(self, **arguments: Any) -> None:
        """Do the work, with the value of every parameter."""
        self._loaded()(**self.grouped(arguments))

    def grouped(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the function from the values of all parameters."""
        arguments = dict(values)
        for name, group in self.groups.items():
            arguments[name] = group(**{field.name: arguments.pop(field.name) for field in fields(group)})
        return arguments

    def _loaded(self) -> Callable[..., object]:
        """Return the function that does the work; InputError where it needs a package that is not installed."""
        try:
            run: Callable[..., object] = pkgutil.resolve_name(self.run)
        except ModuleNotFoundError as error:
            raise lacking(error, str(self.name)) from None
        return run


def lacking(error: ModuleNotFoundError, user: str) -> InputError:
    """Return how to say that what `user` needs is not installed; raises the error where no command can do without."""
    if (package := str(error.name)) not in OPTIONAL:
        raise error
    return InputError(f"{user} needs the package {package}, which is not installed", remedy=f"pip install {package}")


def instead(flag: str, run: str, about: str) -> click.Option:
    """Return an option in whose place the function `run`, "module:name", is called; then the command ends."""

    def call(ctx: click.Context, _: click.Parameter, given: bool) -> None:
        if given and not ctx.resilient_parsing:
            pkgutil.resolve_name(run)()
            ctx.exit()

    return click.Option([flag], is_flag=True, is_eager=True, expose_value=False, callback=call, help=about)


class Installed(click.Group):
    """A group to whose commands the entry points `group` add those of other packages."""

    def __init__(self, *arguments: Any, group: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._group = group

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, without loading any."""
        return sorted({*super().list_commands(ctx), *discovery.plugins(self._group).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command; None if there is none of that name."""
        found = discovery.plugins(self._group, cmd_name)
        return discovery.load(next(iter(found))) if found else super().get_command(ctx, cmd_name)


class Commands(Installed):
    """The jobs' commands; whatever goes wrong in them, or before one is found, becomes a sentence and a status."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; an error leaves as one that click knows how to end with."""
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:  # the last handler there is
            end = explained(error)
            if isinstance(end, Failure) and speech.is_unanswered():
                document.answer(errors=[end.error], status=end.exit_code)
            raise end from None

    def main(  # type: ignore[override]  # click overloads by standalone_mode
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **settings: Any
    ) -> Any:
        """Run the command line and end the process; click's own handlers would end some failures with status 1.

        With standalone_mode=False the process is the caller's, and so are the errors, as in click.
        """
        if not settings.setdefault("standalone_mode", True):
            return super().main(args, prog_name, **settings)
        settings["standalone_mode"] = False
        try:
            status = super().main(args, prog_name, **settings)
        except (Exception, KeyboardInterrupt) as error:  # the last handler there is
            status = _end(explained(error))
        sys.exit(status if isinstance(status, int) else 0)


def _end(end: click.ClickException | click.exceptions.Exit) -> int:
    if isinstance(end, click.ClickException):
        end.show()
    return end.exit_code


@click.group(
    cls=Commands, group=GROUP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(__version__, prog_name="gguf-mla")
def main() -> None:
    """DeepSeek-family checkpoints to GGUF: converted, inspected, provably right.

    Exit status: 0 done, 1 a proof found a difference, 2 bad usage or input, 3 the machine or this program failed (disk
    full, I/O), 130 interrupted, 141 nobody reads the output any more.
    """
