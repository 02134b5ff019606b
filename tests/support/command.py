"""One way to call the command in tests: in this process where only the answer counts, as a process where more does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.hub import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

# A child's peak memory as the kernel reports it begins with that of the process that started it. This one is small.
_LAUNCHER = """
import json, os, subprocess, sys, time
begin = time.monotonic()
process = subprocess.Popen(sys.argv[2:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
text = process.stdout.read().decode(errors="replace")
os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
read = int(open(f"/proc/{process.pid}/io").readline().split()[1])
_, status, usage = os.wait4(process.pid, 0)
seconds = time.monotonic() - begin
report = {"status": os.waitstatus_to_exitcode(status), "output": text, "read": read,
          "seconds": seconds, "peak": usage.ru_maxrss * 1024}
json.dump(report, open(sys.argv[1], "w"))
"""


@dataclass(frozen=True)
class Answer:
    """What a call came to: its exit status and everything it printed."""

    status: int
    output: str


@dataclass(frozen=True)
class Measured(Answer):
    """An answer with the bytes the process read from files and pipes, its seconds, and its peak resident bytes."""

    read: int
    seconds: float
    peak: int


def gguf_mla(*arguments: Any) -> Answer:
    """Call the command in this process."""
    from click.testing import CliRunner

    from gguf_mla.cli.main import main

    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.output)


def convert(checkpoint: Path, out: Path, kind: str = "auto", *options: Any) -> Answer:
    """Convert in this process, and insist that it works."""
    answer = gguf_mla("convert", checkpoint, out, "--type", kind, "--quiet", *options)
    assert answer.status == 0, answer.output
    return answer


def command(*arguments: Any) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "gguf_mla", *map(str, arguments)]


def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
    """Start the command as a process."""
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), **options
    )


def measure(line: list[str], report: Path, env: dict[str, str] | None = None) -> Measured:
    """Run a command line to its end and measure it; `report` is a file to use."""
    launcher = [sys.executable, "-S", "-c", _LAUNCHER, str(report), *line]
    subprocess.run(launcher, check=True, env=environment() | (env or {}))
    return Measured(**json.loads(report.read_text()))


def environment() -> dict[str, str]:
    """This process's environment, with the repository importable from any directory."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY)}
