"""Kill conversions and quantizations at random instants, fill the disk at random levels, and see that a rerun is right.

    python benchmarks/crashes.py [--kills 100] [--levels 30] [--seed 0]

Status 1 if any rerun gives other bytes than an undisturbed run, or anything incomplete lies under a final name.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from gguf_mla.cli.failures import Failure
from tests.support import crash
from tests.support.crash import Job, content


def check(job: Job, out: Path, expected: dict[str, bytes], what: str) -> None:
    """Look at what a failed run has left, rerun it, and compare."""
    for path in out.glob("*.gguf"):
        if path.read_bytes() != expected[path.name]:
            raise SystemExit(f"{what}: {path.name} is incomplete under its final name")
    job.run(out)
    if content(out) != expected:
        raise SystemExit(f"{what}: the rerun gives other files")


def kill(name: str, job: Job, expected: dict[str, bytes], longest: float, chance: random.Random, total: int) -> str:
    """Kill one run, by the clock or by what it does to the disk; return what it was killed with."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        if chance.random() < 0.5:
            instant: float = chance.uniform(0, longest)
            status, kind = crash.killed_after(instant, lambda: job.run(out)), "clock"
        else:
            instant = chance.randint(1, total)
            status, kind = crash.killed_at(int(instant), lambda: job.run(out)), "disk"
        if status == 0 or content(out) == expected:
            return "ended before"
        if status != -signal.SIGKILL:
            raise SystemExit(f"{name}: status {status} instead of a kill")
        check(job, out, expected, f"{name}, {kind} {instant}")
        return kind


def fill(name: str, job: Job, expected: dict[str, bytes], chance: random.Random) -> None:
    """Let the disk be full after a random number of bytes."""
    level = chance.randrange(sum(len(data) for data in expected.values()))
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        try:
            with crash.full_after(level):
                job.run(out)
        except Failure as failure:
            if failure.status != 3 or "bytes free" not in failure.message:
                raise SystemExit(f"{name}, full after {level}: {failure.message}") from None
        else:
            raise SystemExit(f"{name}, full after {level}: it went on")
        if list(out.glob("*.gguf")):
            raise SystemExit(f"{name}, full after {level}: something has its final name")
        check(job, out, expected, f"{name}, full after {level}")


@click.command()
@click.option("--kills", default=100, show_default=True)
@click.option("--levels", default=30, show_default=True)
@click.option("--seed", default=0, show_default=True)
def crashes(kills: int, levels: int, seed: int) -> None:
    """Crash the bundled checkpoint's conversion and quantization again and again."""
    chance, done = random.Random(seed), Counter[str]()
    with crash.small_steps(), tempfile.TemporaryDirectory() as directory:
        jobs = crash.jobs(Path(directory))
        measured = {name: undisturbed(job) for name, job in jobs.items()}
        while done["clock"] + done["disk"] < kills:
            name = chance.choice(list(jobs))
            done[kill(name, jobs[name], measured[name][0], measured[name][1], chance, measured[name][2])] += 1
        for _ in range(levels):
            name = chance.choice(list(jobs))
            fill(name, jobs[name], measured[name][0], chance)
    killed = f"{done['clock']} by the clock, {done['disk']} by what they did to the disk"
    click.echo(f"{kills} runs killed ({killed}), {levels} disks full: every rerun gave the bytes of an undisturbed run")


def undisturbed(job: Job) -> tuple[dict[str, bytes], float, int]:
    """Return the files of a run that nothing disturbs, its seconds, and how often it touches the disk."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        total = crash.operations(lambda: job.run(Path(first)))
        begin = time.monotonic()
        job.run(Path(second))
        return content(Path(second)), time.monotonic() - begin, total


if __name__ == "__main__":
    crashes()
