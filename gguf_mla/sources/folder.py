"""Where a checkpoint's files lie: a directory of this machine.

Whatever else can list names and read ranges of files is a `Folder`, too, and checkpoints are opened from it alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.files.input import InputFile, unreadable
from gguf_mla.files.readable import Elsewhere, Folder, Readable

if TYPE_CHECKING:
    from gguf_mla.files.readable import AnyPath

__all__ = ["Folder", "LocalFolder", "Readable"]


class LocalFolder(Folder):
    """A directory."""

    def __init__(self, path: Path | str) -> None:
        self.path: Path = Path(path)

    def names(self, under: str = "") -> list[str]:
        """Return the names of the files in the directory, or "under/NAME" for those in a directory of it, sorted."""
        directory = self.path / under
        if under and not directory.is_dir():
            return []
        try:
            found = sorted(path.name for path in directory.iterdir() if path.is_file())
        except OSError as error:
            raise unreadable(directory, error) from None
        return [f"{under}/{name}" if under else name for name in found]

    def open(self, name: str) -> InputFile:
        """Return a file to read; InputError when it is missing or cannot be read."""
        return InputFile(self.path / name)


def open_folder(path: AnyPath | str) -> Folder:
    """Return the directory of a checkpoint; InputError for a file, or a path where nothing is."""
    if isinstance(path, Elsewhere):
        return path.folder()
    path = Path(path)
    if not path.is_dir():
        what = "is a file; a checkpoint is the directory with config.json" if path.exists() else "does not exist"
        raise InputError(
            what, file=path, remedy="Name the directory that holds config.json and the .safetensors shards"
        )
    return LocalFolder(path)
