"""A sink that is a directory, for runs of this process."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import MachineError
from gguf_mla.remote.destination import Published

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass
class Shelf:
    """Takes files into a directory; `fails` after so many, `most` is how many bytes lay beside an output at once."""

    directory: Path
    keeps: bool = False
    fails: int | None = None
    taken: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    most: int = 0
    published: Published = field(default_factory=lambda: Published("me/x"))
    sums: dict[Path, str] = field(default_factory=dict)

    def takes(self, path: Path) -> bool:
        return path.suffix != ".sha256"

    def name(self, path: Path) -> str:
        return path.name

    def has(self, receipts: Mapping[str, Mapping[str, Any]]) -> set[str]:
        return {name for name in receipts if (self.directory / name).is_file()}

    def take(self, path: Path, built: Path) -> dict[str, Any]:
        beside = [file.stat() for file in path.parent.glob("*.partial")]
        self.most = max(self.most, sum(status.st_blocks * 512 for status in beside))
        if self.fails is not None and len(self.taken) >= self.fails:
            raise MachineError("the shelf is full", file=path)
        shutil.copyfile(built, self.directory / path.name)
        self.taken.append(path.name)
        return {"size": built.stat().st_size, "sha256": hashlib.sha256(built.read_bytes()).hexdigest()}

    def stop(self) -> None:
        pass

    def state(self) -> str:
        return ""

    def publish(self, receipts: Mapping[str, Mapping[str, Any]]) -> None:
        self.shown = sorted(receipts)
