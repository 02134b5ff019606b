"""Workers and finishers killed at random instants: python -m tests.plan.kills [COUNT [KIND...]]

Every worker is killed in the middle of its n-th touch of the disk, and another one goes on at the same time. What is
left is finished, and has to have the bytes of a plain run.
"""

from __future__ import annotations

import random
import shutil
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.plan import contract
from tests.plan.contract import ok, plan, words
from tests.support import crash
from tests.support.command import gguf_mla


def main(count: int, kinds: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name, crash.constant_saving():
        place = Path(name)
        (begin := place / "begin").mkdir()
        for kind, job in contract.jobs(begin).items():
            if kind not in kinds:
                continue
            (plain := place / kind).mkdir()
            ok(gguf_mla(*words(job, plain)))
            killed = sum(_killed(job, place / f"{kind}-work", number, crash.content(plain)) for number in range(count))
            print(f"{kind}: {count} workers and {count} finishers, {killed} of them killed, all bytes right")


def _killed(job: crash.Job, place: Path, seed: int, expected: dict[str, bytes]) -> int:
    """Kill a worker and a finisher, and return how many died before they had ended."""
    random_ = random.Random(seed)
    (out := place / "out").mkdir(parents=True)
    file = place / "plan.json"
    ok(plan(job, out, file))
    work = partial(gguf_mla, "work", file, "--threads", 1 + seed % 2, "--quiet")
    killed = [
        crash.killed_at(random_.randrange(1, 120), partial(work, "--rank", 0, "--of", 2)),
        crash.killed_after(random_.uniform(0.05, 0.5), partial(work, "--rank", 0, "--of", 2)),
    ]
    assert crash.forked_together([partial(_ok, work, "--rank", rank, "--of", 2) for rank in (0, 1, 0)]) == [0, 0, 0]
    killed.append(crash.killed_at(random_.randrange(1, 30), partial(gguf_mla, "finish", file, "--quiet")))
    for path in out.glob("*.gguf"):
        assert path.read_bytes() == expected[path.name], f"{seed}: incomplete under its final name"
    if list(out.glob("*.work")):
        ok(gguf_mla("finish", file, "--quiet"))
    assert crash.content(out) == expected, seed
    shutil.rmtree(place)
    return killed.count(-signal.SIGKILL)


def _ok(task: partial[contract.Answer], *share: object) -> None:
    ok(task(*share))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30, sys.argv[2:] or [*contract.KINDS])
