"""What a call costs: seconds of CPU and bytes of memory, measured in a child process of this one that does it alone.

What else runs on a machine makes the same work cost twice the seconds, and machines differ as much. So a piece of work
that is always the same is measured before and after, and seconds are given as a quiet machine counts them, on which
that piece takes `QUIET`.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import time
import traceback
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from gguf_mla.errors import GgufMlaError

if TYPE_CHECKING:
    from collections.abc import Callable

ENDLESS = 60  # seconds
QUIET = 0.05  # seconds for `_pace`'s work, on a server of 2021


@dataclass(frozen=True)
class Cost:
    """What came of a call.

    outcome  "read", "refused" (our own error), "status N" of a command, "traceback", or "killed"
    words    what was said
    seconds  of CPU, on a quiet machine
    memory   bytes that it had at most, beyond what the process had before
    """

    outcome: str
    words: str
    seconds: float
    memory: int


def cost(call: Callable[[], object]) -> Cost:
    """Do a call in a child and measure it; what returns status and output is a command."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _report(call, writing)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return Cost(**json.loads(said)) if said else Cost("killed", f"by a signal, or after {ENDLESS} s", ENDLESS, 0)


def _report(call: Callable[[], object], writing: int) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(ENDLESS)
    gc.freeze()  # what the parent has loaded, torch and all, is not looked through at the cost of the call
    pace = _pace()
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    outcome, words = _outcome(call)
    seconds = time.process_time() - begin
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    seconds /= max(pace, _pace(), 1)
    os.write(writing, json.dumps(asdict(Cost(outcome, words[-2000:], seconds, memory))).encode())


def _pace() -> float:
    """How many times as long as on a quiet machine this takes: reading, small objects, texts and memory."""
    begin = time.process_time()
    for _ in range(20):
        numbers = {str(n): [n, n + 0.5] for n in range(1000)}
        json.loads(json.dumps(numbers))
    return (time.process_time() - begin) / QUIET


def _outcome(call: Callable[[], object]) -> tuple[str, str]:
    try:
        found = call()
    except GgufMlaError as error:
        return "refused", str(error)
    except BaseException:
        return "traceback", traceback.format_exc()
    if isinstance(found, tuple):
        return f"status {found[0]}", str(found[1])
    return "read", ""
