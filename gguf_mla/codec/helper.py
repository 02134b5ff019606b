"""A process that compiles kernels for another: a `Need` comes in as a line of JSON, an empty line says that it is met.

It ends when its standard input does, at once, whatever it is at: nobody is left who would want it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading

from gguf_mla.codec.ahead import Need


def main() -> None:
    """Do what comes in until nothing more can."""
    answers = os.dup(sys.stdout.fileno())
    sys.stdout = sys.stderr  # nothing that is printed is an answer
    needs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_work, args=(needs, answers), daemon=True).start()
    for line in sys.stdin.buffer:
        needs.put(line)
    os._exit(0)


def _work(needs: queue.SimpleQueue[bytes], answers: int) -> None:
    try:
        while True:
            purpose, function, arguments = json.loads(needs.get())
            Need(purpose, function, tuple(arguments)).meet()
            os.write(answers, b"\n")
    finally:
        os._exit(1)  # whoever waits does it themselves, and sees the error


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who has started it
    main()
