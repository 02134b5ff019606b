"""A process that reads from the servers, command by command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.support.hub import REPOSITORY

if TYPE_CHECKING:
    from tests.remote.servers import Network


@dataclass(frozen=True)
class Read:
    """What a command came to: its status, what it printed, its output's digest, its traffic, its memory."""

    status: int
    said: str
    sha256: str | None
    bytes: int
    requests: int
    seconds: float
    peak: int


class Reader:
    """A child process; as a context, until the end."""

    def __init__(self, network: Network, home: Path, settings: dict[str, float] | None = None, **more: str) -> None:
        environment = os.environ | network.environment | {"HF_HOME": str(home)} | more
        command = [sys.executable, "-m", "tests.remote.child", json.dumps(settings or {})]
        self.process = subprocess.Popen(
            command, env=environment, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *arguments: Any) -> Read:
        """Run a command to its end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(a) for a in arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the child has died"
        return Read(**json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


def peak_of(network: Network, place: Path, *arguments: Any) -> tuple[Read, int]:
    """Run a command in a process of its own; return what it came to and its peak memory. Its output goes afterwards."""
    with Reader(network, place / "home") as reader:
        read = reader.run(*arguments)
    Path(arguments[2]).unlink(missing_ok=True)
    return read, read.peak
