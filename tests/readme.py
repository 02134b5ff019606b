"""Run the README's commands as they are written, and compare what they print with what it shows, up to numbers.

`python -m tests.readme` runs all of them; the suite runs those that take less than a second (tests/test_readme.py).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.hub import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG = (
    "gguf-mla verify",
    "gguf-mla imatrix",
    "gguf-mla demo",
    "gguf-mla convert kimi",
)  # they compute models, or need them
PROGRESS = re.compile(r".*: \d+%, .* of .*/s, ")  # a line that comes where a run takes long
FOREIGN = re.compile(r"\$[A-Z_]+")  # a command that needs what only a reader has


@dataclass(frozen=True)
class Step:
    """A command and the lines it is shown to print; "..." stands for any."""

    command: str
    shown: tuple[str, ...]

    @property
    def is_long(self) -> bool:
        return self.command.startswith(LONG)


def steps(text: str) -> Iterator[Step]:
    """Yield the commands of all consoles on a page, in their order."""
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.rstrip("\n").split("\n")
            if not FOREIGN.search(command):
                yield Step(command, tuple(shown))


def comparable(line: str) -> str:
    """Return a line without what differs between machines and runs: numbers, their units, the widths of columns."""
    line = re.sub(r"\d+(\.\d+)? ?(B|KiB|MiB|GiB|TiB)\b", "SIZE", line)
    line = re.sub(r"(?<![\w.])\d+(\.\d+)?(e[-+]?\d+)?(?![\w.])", "N", line)
    return re.sub(r"(-{2,}|\s)+", " ", line).strip()


def differences(step: Step, printed: str) -> list[str]:
    """Return the lines that are shown and not printed, in order; all that is printed has to be shown or elided."""
    found = [comparable(line) for line in printed.splitlines() if line.strip() and not PROGRESS.match(line)]
    wanted = [comparable(line) for line in step.shown if line.strip()]
    pattern = "".join(r"(?:.*\n)*" if line == "..." else f"{re.escape(line)}\n" for line in wanted)
    same = re.fullmatch(pattern, "".join(f"{line}\n" for line in found))
    return [] if not wanted or same else [*wanted, "---", *found]


def play(chosen: Callable[[Step], bool], run: Callable[[list[str]], tuple[int, str]]) -> list[str]:
    """Run the chosen commands in the current directory, ours with `run`; return what differs from the page."""
    for name in ("gguf_mla", "README.md"):
        Path(name).symlink_to(REPOSITORY / name)
    wrong, status = [], 0
    for step in steps((REPOSITORY / "README.md").read_text(encoding="utf-8")):
        if not chosen(step):
            continue
        if step.command == "echo $?":
            printed = f"{status}\n"
        elif step.command.startswith("gguf-mla "):
            words = subprocess.run(
                ["bash", "-c", f"printf '%s\\n' {step.command}"], check=True, capture_output=True, text=True
            ).stdout.splitlines()
            status, printed = run(words[1:])
        else:
            done = subprocess.run(["bash", "-c", step.command], check=True, capture_output=True, text=True)
            status, printed = done.returncode, done.stdout
        if found := differences(step, printed):
            wrong.append("\n".join([f"$ {step.command}", *found]))
    return wrong


def _as_process(words: list[str]) -> tuple[int, str]:
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    line = [sys.executable, "-m", "gguf_mla", *words]
    done = subprocess.run(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        differing = play(lambda _: True, _as_process)
        os.chdir("/")
    print("\n\n".join(differing) or "all as the README shows")
    sys.exit(bool(differing))
