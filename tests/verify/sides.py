"""A right file with what it was made from, and the first level of a proof."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.replant import Plant
from verify.job import Proof, Request, prove

if TYPE_CHECKING:
    from pathlib import Path

    from verify.findings import Finding


class Side:
    """A right file, small of weights, and its references."""

    def __init__(self, checkpoint: Path, gguf: Path) -> None:
        self.checkpoint, self.gguf, self.plant = checkpoint, gguf, Plant(gguf)


def structure(reference: Path, candidate: Path) -> Proof:
    return prove(Request(reference, candidate, level="structure"))


def first(proof: Proof) -> Finding:
    assert proof.findings
    return proof.findings[0]
