"""Runs commands in one process, as many as there are lines on standard input, and answers each with a line.

Waits are short, so that faults cost a test little; what is waited for is the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import resource
import sys
import time
from pathlib import Path

from gguf_mla.cli import interrupts
from gguf_mla.cli.main import main
from gguf_mla.remote import layout, link, troubles
from gguf_mla.remote.traffic import TRAFFIC
from gguf_mla.stream import saving


def run() -> None:
    settings = json.loads(sys.argv[1])
    link.READ_SECONDS, link.CONNECT_SECONDS = settings.get("read", 1.0), 2.0
    layout.RUN_BYTES = settings.get("run", layout.RUN_BYTES)
    saving.SAVE_SECONDS = settings.get("save", saving.SAVE_SECONDS)
    troubles.PATIENCE, troubles.FIRST_PATIENCE = settings.get("patience", 6.0), 3.0
    troubles.FIRST_PAUSE = settings.get("pause", troubles.FIRST_PAUSE)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), file=sys.__stdout__, flush=True)


def _answer(arguments: list[str]) -> dict[str, object]:
    before, begin, told = TRAFFIC.count(), time.monotonic(), io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told), interrupts.raised():
        try:
            main(arguments)
        except SystemExit as end:
            status = end.code
    after = TRAFFIC.count()
    out = Path(arguments[2]) if len(arguments) > 2 else None
    return {
        "status": status,
        "said": told.getvalue(),
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest() if out and out.is_file() else None,
        "bytes": after.bytes - before.bytes,
        "requests": after.requests - before.requests,
        "seconds": time.monotonic() - begin,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    run()
