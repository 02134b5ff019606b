"""A tensor that is stored as several."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gguf_mla.sources.safetensors import StoredTensor


class InParts:
    """The half of a SourceTensor that says what is read; `by_rows` are the parts with the same rows, as it reads them.

    What all rows share is small, and not announced.
    """

    by_rows: tuple[StoredTensor, ...]

    def will_read(self, start: int, stop: int) -> None:
        """Ask the OS to fetch rows `start:stop`."""
        for part in self.by_rows:
            part.will_read(start, stop)

    def was_read(self, start: int, stop: int) -> None:
        """Let the OS forget rows `start:stop`."""
        for part in self.by_rows:
            part.was_read(start, stop)
