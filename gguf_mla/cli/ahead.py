"""Kernels are compiled before a run, with a line and a bar of their own: it takes seconds, once on a machine."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from gguf_mla.cli.progress import progress
from gguf_mla.codec import ahead
from gguf_mla.files import platform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_mla.cli.options import RunOptions
    from gguf_mla.cli.progress import Progress
    from gguf_mla.codec.ahead import Need

TITLE = "compiling kernels, once"  # leaves room for the bar in 80 columns
NAMED = 3  # types that the line above it names


def compile_ahead(needs: Sequence[Need], options: RunOptions) -> None:
    """Have all kernels on disk or in memory; a terminal hears which have to be compiled, and how many are there."""
    with ExitStack() as stack:
        bar = _Bar(f"compiling kernels for {_purposes(needs)}, once on this machine", stack, options)
        ahead.meet(needs, options.threads or platform.cores(), bar.show)


class _Bar:
    """A bar that appears when there is something to show."""

    def __init__(self, about: str, stack: ExitStack, options: RunOptions) -> None:
        self._about, self._stack, self._quiet = about, stack, options.quiet
        self._bar: Progress | None = None
        self._done = 0

    def show(self, done: int, total: int) -> None:
        """Show that `done` of `total` are there."""
        if self._bar is None:
            self._bar = self._stack.enter_context(progress(TITLE, total, "kernels", quiet=self._quiet))
            self._bar.aside(self._about)
        self._bar.update(done - self._done)
        self._done = done


def _purposes(needs: Sequence[Need]) -> str:
    names = list(dict.fromkeys(need.purpose for need in needs))
    others = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + others
