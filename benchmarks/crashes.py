"""Kill every command that writes at random instants, fill the disk at random levels, and see that a rerun is right.

    python benchmarks/crashes.py [--kills 100] [--levels 30] [--seed 0]

A third of the reruns are killed, too. The table tells what the kills had left: nothing, files that were begun or in
work, some or all files named. Status 1 if any rerun fails or gives other bytes than an undisturbed run, or anything
incomplete lies under a final name.
"""

from __future__ import annotations

import contextlib
import io
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from gguf_mla.cli.failures import Failure
from tests.support import crash

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.crash import Job

PHASES = ("nothing", "begun", "in work", "some named", "all named", "complete")
LAST = 15  # touches of the disk, by which files are named, get as many kills as all that come before
AGAIN = 1 / 3  # of the reruns are killed in their turn


@dataclass
class Measured:
    """A job, the files of a run that nothing disturbs, its seconds, and how often it touches the disk."""

    name: str
    job: Job
    expected: dict[str, bytes]
    seconds: float
    touches: int


@dataclass
class Score:
    """What has happened to a job: how it was killed, what that had left, and what was wrong then."""

    kills: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def content(out: Path) -> dict[str, bytes]:
    """Every file by name; a report without the seconds that it tells."""
    files = crash.content(out)
    return {
        name: re.sub(rb"[0-9.]+ s\b", b"", data) if name.endswith(".html") else data for name, data in files.items()
    }


def measured(name: str, job: Job) -> Measured:
    """Run a job undisturbed."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        touches = crash.operations(lambda: job.run(Path(first)))
        begin = time.monotonic()
        job.run(Path(second))
        return Measured(name, job, content(Path(second)), time.monotonic() - begin, touches)


def kill(one: Measured, chance: random.Random, score: Score) -> None:
    """Kill a run, and now and then its reruns, until one ends; compare."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        instants: list[str] = []
        while not instants or chance.random() < AGAIN:
            kind, instant, status = killed(one, out, chance)
            if status != -signal.SIGKILL:  # it ended before, which some reruns do by saying so
                break
            instants.append(f"{kind} {instant:.4g}")
            score.kills[kind] += 1
            score.phases[phase(one, out)] += 1
            if is_wrong(one, out):
                break
        said = check(one, out) if instants else None
        if said:
            score.failures.append(f"{one.name}, killed at {', '.join(instants)}: {said}")


def killed(one: Measured, out: Path, chance: random.Random) -> tuple[str, float, int]:
    """Run a job that dies, by the clock or by what it does to the disk; return which, when, and how it ended."""
    if one.touches and chance.random() < 0.5:
        earliest = chance.choice((1, max(1, one.touches - LAST)))
        number = chance.randint(earliest, one.touches)
        return "disk", number, crash.killed_at(number, lambda: one.job.run(out))
    seconds = chance.uniform(0, one.seconds)
    return "clock", seconds, crash.killed_after(seconds, lambda: one.job.run(out))


def phase(one: Measured, out: Path) -> str:
    """Return how far a killed run had come, by what it has left."""
    names = {path.name for path in out.iterdir()}
    outputs = {name for name in one.expected if not name.endswith(".sha256")}
    if names == one.expected.keys():
        return "complete"
    if outputs & names:
        return "all named" if outputs <= names else "some named"
    if not names:
        return "nothing"
    return "in work" if any(path.stat().st_size for path in out.glob("*.partial")) else "begun"


def is_wrong(one: Measured, out: Path) -> bool:
    """Whether something incomplete lies under a final name."""
    return any(one.expected.get(name, data) != data for name, data in content(out).items())


def check(one: Measured, out: Path) -> str | None:
    """Look at what a failed run has left, rerun it, and compare; return what is wrong."""
    if is_wrong(one, out):
        return "something incomplete has its final name"
    if content(out) == one.expected:
        return None
    try:
        one.job.run(out)
    except Exception as error:
        return f"the rerun fails: {error}"
    return None if content(out) == one.expected else f"the rerun gives other files: {sorted(content(out))}"


def fill(one: Measured, chance: random.Random, score: Score) -> None:
    """Let the disk be full after a random number of bytes."""
    level = chance.randrange(sum(len(data) for data in one.expected.values()))
    with tempfile.TemporaryDirectory() as directory:
        said = filled(one, Path(directory), level)
    if said:
        score.failures.append(f"{one.name}, full after {level}: {said}")


def filled(one: Measured, out: Path, level: int) -> str | None:
    """Fill the disk, and rerun the job with enough of it; return what is wrong."""
    try:
        with crash.full_after(level):
            one.job.run(out)
    except Failure as failure:
        if failure.status != 3 or "bytes free" not in failure.message:
            return failure.message
    else:
        return "it went on"
    return "something has its final name" if list(out.glob("*.gguf")) else check(one, out)


@click.command()
@click.option("--kills", default=100, show_default=True)
@click.option("--levels", default=30, show_default=True)
@click.option("--seed", default=0, show_default=True)
def crashes(kills: int, levels: int, seed: int) -> None:
    """Crash every command that writes, again and again."""
    chance, scores = random.Random(seed), defaultdict[str, Score](Score)
    with crash.small_steps(), silent(), tempfile.TemporaryDirectory() as directory:
        jobs = [measured(name, job) for name, job in crash.all_jobs(Path(directory)).items()]
        while sum(score.kills.total() for score in scores.values()) < kills:
            one = min(jobs, key=lambda one: (scores[one.name].kills.total(), chance.random()))
            kill(one, chance, scores[one.name])
        full = [one for one in jobs if one.name in crash.STREAMED]
        for _ in range(levels):
            one = chance.choice(full)
            fill(one, chance, scores[one.name])
    click.echo(table(scores))
    failures = [failure for score in scores.values() for failure in score.failures]
    for failure in failures:
        click.echo(failure)
    total = sum(score.kills.total() for score in scores.values())
    click.echo(f"{total} runs killed, {levels} disks full, {len(failures)} failures")
    raise SystemExit(bool(failures))


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Let nobody hear what the commands say."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield


def table(scores: dict[str, Score]) -> str:
    """Return a line for each command."""
    head = f"{'':10} {'kills':>6} {'clock':>6} {'disk':>6}" + "".join(f" {name:>10}" for name in PHASES) + "  failures"
    lines = [
        f"{name:10} {score.kills.total():6} {score.kills['clock']:6} {score.kills['disk']:6}"
        + "".join(f" {score.phases[name]:10}" for name in PHASES)
        + f" {len(score.failures):9}"
        for name, score in sorted(scores.items())
    ]
    return "\n".join([head, *lines])


if __name__ == "__main__":
    crashes()
