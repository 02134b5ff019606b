"""Folders that lie in memory, for what must not care where files lie."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.sources.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class MemoryFile:
    """Bytes as a Readable."""

    name: str
    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def identity(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        if offset + count > self.size:
            raise InputError("the file ends too early", file=self.name)
        return np.frombuffer(self.content, np.uint8, count, offset).copy()

    def will_read(self, offset: int, count: int) -> None:
        assert 0 <= offset <= offset + count <= self.size

    def was_read(self, offset: int, count: int) -> None:
        assert 0 <= offset <= offset + count <= self.size


class MemoryFolder(Folder):
    """What a directory held, on no disk: `files` by their names in it."""

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        self.path, self.files = PurePosixPath("memory:", name), files

    @classmethod
    def of(cls, directory: Path) -> MemoryFolder:
        """Read a directory whole."""
        paths = [path for path in directory.rglob("*") if path.is_file()]
        return cls(directory.name, {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths})

    def names(self, under: str = "") -> list[str]:
        prefix = f"{under}/" if under else ""
        return sorted(name for name in self.files if name.startswith(prefix) and "/" not in name[len(prefix) :])

    def open(self, name: str) -> MemoryFile:
        if name not in self.files:
            raise InputError("cannot be read (there is nothing of that name)", file=self.path / name)
        return MemoryFile(str(self.path / name), self.files[name])
