"""The `gguf-mla` command, also as `python -m gguf_mla`."""

from __future__ import annotations

import signal


def run() -> None:
    """Start the command line; Ctrl-C ends the process quietly until there is somebody to say more."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from gguf_mla.cli.main import main  # noqa: PLC0415 - an interrupt while this is imported must not print a traceback

    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(prog_name="gguf-mla")


if __name__ == "__main__":
    run()
