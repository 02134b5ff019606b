"""The choices of sparse attention, layer by layer, and whether two sides choose the same tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.forward import indexer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguf_mla.forward.arrays import Numbers
    from gguf_mla.forward.indexer import Index


class Chooser:
    """What the tokens of some sequences attend to; a layer without an indexer keeps the choice of the one before."""

    def __init__(self) -> None:
        self.indexes: Sequence[Index] = ()
        self.chosen: Sequence[Numbers] = ()

    def take(self, indexes: Sequence[Index] | None, top_k: int) -> Sequence[Numbers]:
        """Return the choice [T, K] of every sequence, made anew where the layer has an index for each."""
        if indexes is not None:
            self.indexes = indexes
            self.chosen = [indexer.choose(index, top_k) for index in indexes]
        return self.chosen
