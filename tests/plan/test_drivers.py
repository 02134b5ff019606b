"""Threads and ranks keep the contract."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar

from tests.plan.contract import Contract, ok, plan, words
from tests.support.command import Answer, gguf_mla

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.crash import Job


class TestThreads(Contract):
    """The plain command."""

    def run(self, job: Job, out: Path, scratch: Path) -> Answer:  # noqa: ARG002 - other drivers need it
        return gguf_mla(*words(job, out), "--threads", "3")


class TestRanks(Contract):
    """Four ranks in any order, with one thread or two, the first of them twice."""

    left: ClassVar[set[str]] = {"out.gguf.partial", "out.gguf.work"}

    def run(self, job: Job, out: Path, scratch: Path) -> Answer:
        ok(plan(job, out, scratch / "plan.json"))
        ranks = [*range(4), 0]
        random.Random(str(job)).shuffle(ranks)
        for rank in ranks:
            share = ("--rank", rank, "--of", 4, "--threads", 1 + rank % 2, "--quiet")
            answer = gguf_mla("work", scratch / "plan.json", *share)
            if answer.status:
                return answer
        return gguf_mla("finish", scratch / "plan.json", "--quiet")
