"""Kernels are compiled before a run, with a line and a bar of their own: it takes seconds, once on a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

from gguf_mla.codec import ahead
from gguf_mla.files import platform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_mla.cli.options import RunOptions
    from gguf_mla.codec.ahead import Need

NAMED = 3  # types that the line names


def compile_ahead(needs: Sequence[Need], options: RunOptions) -> None:
    """Have all kernels on disk or in memory; a terminal hears which have to be compiled, and how many are there."""
    hidden = options.quiet or None  # None: only where standard error is a terminal
    with _Bar(f"compiling kernels for {_purposes(needs)}, once", hidden=hidden) as bar:
        ahead.meet(needs, options.threads or platform.cores(), bar.show)


class _Bar:
    """A bar that appears when there is something to show."""

    def __init__(self, title: str, *, hidden: bool | None) -> None:
        self._title, self._hidden = title, hidden
        self._bar: tqdm[Any] | None = None

    def show(self, done: int, total: int) -> None:
        """Show that `done` of `total` are there."""
        if self._bar is None:
            self._bar = tqdm(total=total, desc=self._title, unit=" kernels", disable=self._hidden)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _purposes(needs: Sequence[Need]) -> str:
    names = list(dict.fromkeys(need.purpose for need in needs))
    others = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + others
