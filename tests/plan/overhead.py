"""What shared work costs beside the plain command: python -m tests.plan.overhead DIRECTORY [GIGABYTES]

A checkpoint in FP8 is made in the directory and converted to Q4_K_M: by the plain command, by plan, one worker and
finish, and on a Ray cluster of one machine with two processors, whose start is counted apart. Each twice, in turn.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support import bulk
from tests.support.command import command, environment

SPENT: dict[str, float] = {}  # seconds of CPU by command; those of a cluster's workers are not known
TYPE = ("--type", "Q4_K_M", "--threads", "2")


def main(place: Path, gigabytes: float) -> None:
    checkpoint = place / "checkpoint"
    if not checkpoint.exists():
        bulk.write(checkpoint, "v3fp8", layers=4, experts=max(8, int(gigabytes * 96)))
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    print(f"{size / 1e9:.2f} GB to Q4_K_M, seconds")
    for _ in range(2):
        plain, _ = timed("convert", checkpoint, place / "plain.gguf", *TYPE, "--json")
        planned, _ = timed("plan", "convert", checkpoint, place / "ranks.gguf", *TYPE, "--out", place / "p.json")
        worked, work = timed("work", place / "p.json", "--rank", 0, "--of", 1, "--threads", 2, "--json")
        finished, _ = timed("finish", place / "p.json", "--threads", 2, "--json")
        ranks = planned + worked + finished
        busy = [f"{name} {seconds:.1f}" for name, seconds in SPENT.items()]
        print(f"seconds of CPU: {', '.join(busy)}")
        print(f"plain {plain:.1f}; plan {planned:.1f} + work {worked:.1f} + finish {finished:.1f} = {ranks:.1f}")
        print(f"  work alone against the plain command: {worked / plain - 1:+.1%}, all three: {ranks / plain - 1:+.1%}")
        print(f"  stages of the worker: {work['stages']}, {work['share']['work']}")
        start, _ = timed_start()
        ray, _ = timed("convert", checkpoint, place / "ray.gguf", *TYPE, "--engine", "ray", "--json")
        print(f"  ray {ray:.1f}, its start {start:.1f}, beyond it {(ray - start) / plain - 1:+.1%}")
        sums = {(place / f"{name}.gguf").read_bytes() for name in ("plain", "ranks", "ray")}
        assert len(sums) == 1
        for name in ("plain.gguf", "ranks.gguf", "ray.gguf", "p.json"):
            (place / name).unlink()


def timed(*words: Any) -> tuple[float, dict[str, Any]]:
    begin, before = time.monotonic(), sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    done = subprocess.run(command(*words), env=environment(), capture_output=True, text=True, check=False)
    seconds = time.monotonic() - begin
    SPENT[words[0]] = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before
    assert done.returncode == 0, done.stdout + done.stderr
    return seconds, json.loads(done.stdout) if "--json" in words else {}


def timed_start() -> tuple[float, None]:
    """Return how long it takes to start a cluster, a worker that has loaded what it needs, and to end it again."""
    code = """
import ray
from gguf_mla.stream import on_ray
with on_ray.cluster(None):
    ray.get(ray.remote(lambda: __import__("gguf_mla.cli.distributed"))  .remote())
"""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, capture_output=True)
    return time.monotonic() - begin, None


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
