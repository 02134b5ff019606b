"""The `gguf-mla` command, also as `python -m gguf_mla`."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import NoReturn

# New objects after which Python looks for garbage among them. Plans are millions that stay, and looking through them
# after every 700 takes a quarter of the time.
KEPT = 100_000


def run() -> None:
    """Start the command line; Ctrl-C ends the process quietly until there is somebody to say more."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.set_threshold(KEPT)
    # Threads of torch that wait for the next product leave their cores to what decodes it; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # likewise: its large tensors, which come and go, in large pages
    # A user's own convert.py, in the current directory or on PYTHONPATH, is not what is meant here.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120 - light
    try:
        # An interrupt while these are imported must not print a traceback, and a failure must not be a status of 1.
        from gguf_mla.cli import interrupts, streams  # noqa: PLC0415 - see above
        from gguf_mla.cli.main import main  # noqa: PLC0415 - see above
    except Exception as error:  # whatever it is, it ends here
        _cannot_start(error)
    streams.set_up()
    with interrupts.raised():
        main(prog_name="gguf-mla")


def _cannot_start(error: Exception) -> NoReturn:
    """Say so with what Python has always loaded: nothing more can be relied on."""
    if os.environ.get("GGUF_MLA_TRACEBACK"):
        raise error
    words = ascii(f"gguf-mla: error: the command cannot start: {type(error).__name__} {error}")[1:-1]
    if sys.stderr is not None:
        sys.stderr.write(f"{words[:2000]}\n")
    sys.exit(3)


if __name__ == "__main__":
    run()
