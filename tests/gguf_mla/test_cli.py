"""The command itself: quick help, explained failures with their status, a quiet end on Ctrl-C."""

from __future__ import annotations

import inspect
import pkgutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from gguf_mla.cli.main import Command, main
from gguf_mla.cli.options import RunOptions, TypeOptions
from gguf_mla.cli.plan_command import Planned
from gguf_mla.container.reader import open_gguf
from gguf_mla.errors import GgufMlaError, InputError, MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator


def invoke_raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(type(main), "get_command", lambda *_: fail)
    result = CliRunner().invoke(main, ["fail"])
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (
            InputError("is cut off", file="a.gguf", tensor="t", expected=1, found=2, remedy="Get it again"),
            2,
            "a.gguf: t: is cut off (expected 1, found 2). Get it again.",
        ),
        (MachineError("the disk is full", found="0 bytes free"), 3, "the disk is full (found 0 bytes free)."),
        (GgufMlaError("no"), 2, "no."),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 3, "there is not enough memory"),
    ],
)
def test_a_failure_is_a_sentence_and_a_status(
    error: BaseException, status: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke_raising(error, monkeypatch)[0] == status
    assert f"gguf-mla: error: {words}" in invoke_raising(error, monkeypatch)[1]


def test_every_command_has_a_help_that_imports_no_heavy_module() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from gguf_mla.cli.main import main\n"
        "names = main.list_commands(None); assert {'convert', 'demo', 'inspect'} <= set(names), names\n"
        "for name in names: assert CliRunner().invoke(main, [name, '--help']).exit_code == 0, name\n"
        "print(sorted({'numpy', 'numba', 'gguf', 'torch', 'tqdm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def commands(group: click.Group = main) -> Iterator[tuple[str, Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            yield from ((f"{name} {inner}", command) for inner, command in commands(found))
        elif not isinstance(found, Planned):  # its command is here, too, under its own name
            assert isinstance(found, Command), f"{name} does its work itself"
            yield name, found


@pytest.mark.parametrize(("name", "command"), [pytest.param(*found, id=found[0]) for found in commands()])
def test_a_command_gives_its_function_what_it_takes(name: str, command: Command) -> None:
    """They meet only when the command runs: what one has and the other lacks would be a traceback then."""
    del name
    shared = {field for group in command.groups.values() for field in group.__dataclass_fields__}
    given = [str(param.name) for param in command.params if param.name not in shared and param.expose_value]
    function = pkgutil.resolve_name(command.run)
    assert sorted([*given, *command.groups]) == sorted(inspect.signature(function).parameters)
    types = {name: type_.__name__ for name, type_ in command.groups.items()}
    assert types.items() <= function.__annotations__.items()


@pytest.mark.parametrize("group", [RunOptions, TypeOptions])
def test_without_an_option_a_command_gets_the_default_of_its_field(group: type[RunOptions | TypeOptions]) -> None:
    got: list[object] = []
    command = Command("nowhere:run", "", options=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pkgutil, "resolve_name", lambda _: lambda **given: got.extend(given.values()))
        assert CliRunner().invoke(command, [], catch_exceptions=False).exit_code == 0
    assert got == [group()]


def test_an_unknown_command_is_said() -> None:
    result = CliRunner().invoke(main, ["transmogrify"])
    assert result.exit_code == 2
    assert "transmogrify" in result.stderr


def test_an_interrupt_that_python_wraps_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapping = RuntimeError("Error calling __set_name__")
    assert invoke_raising(wrapping, monkeypatch)[0] == 3
    wrapping.__cause__ = KeyboardInterrupt()
    status, said = invoke_raising(wrapping, monkeypatch)
    assert status == 130
    assert "interrupted" in said


DROPPED = """
import signal, time, weakref
import click
from gguf_mla import __main__
from gguf_mla.cli import main

class Held: ...

@click.command()
def wait():
    held = Held()
    noticed = weakref.ref(held, lambda _: signal.raise_signal(signal.SIGINT))
    del held
    time.sleep(30)
    print("the interrupt was lost", noticed)

main.Commands.get_command = lambda *_: wait
__main__.run()
"""


def test_an_interrupt_in_a_callback_is_neither_lost_nor_a_traceback() -> None:
    """Python prints what is raised in a finaliser or a callback of weakref, and goes on."""
    done = subprocess.run([sys.executable, "-c", DROPPED, "wait"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("gguf-mla: error: interrupted")


def wait_until_our_code_runs(pid: int) -> None:
    """Python catches SIGINT as soon as it starts; the first thing the command does is to stop that for a moment."""

    def caught() -> bool:
        status = Path(f"/proc/{pid}/status").read_text()
        return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGINT - 1) & 1)

    for state in (True, False):
        end = time.monotonic() + 5
        while caught() is not state and time.monotonic() < end:
            time.sleep(0.0005)


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2, 0.3])
def test_an_interrupt_at_any_moment_leaves_no_traceback_and_no_unfinished_file(
    tmp_path: Path, checkpoint: Path, delay: float
) -> None:
    command = [sys.executable, "-m", "gguf_mla", "convert", str(checkpoint), str(tmp_path / "out.gguf")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until_our_code_runs(process.pid)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert "Traceback" not in stderr
    assert process.returncode in (0, 130, -signal.SIGINT)
    out = tmp_path / "out.gguf"
    if out.exists():  # an interrupt may also come between the file's naming and the end
        open_gguf(out)
    else:
        assert process.returncode != 0
    assert not (tmp_path / "out.gguf.partial").exists()
