"""Bytes copied from file to file, inside the OS where it can: network file systems then copy on the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.files import platform
from gguf_mla.files.input import InputFile

if TYPE_CHECKING:
    from gguf_mla.files.output import OutputFile
    from gguf_mla.files.readable import Readable


def copy_range(source: Readable, start: int, target: OutputFile, offset: int, count: int) -> None:
    """Copy the `count` bytes at `start` of one file to `offset` of another.

    What does not lie on this machine, and what the OS refuses to copy (another file system, no support, a full disk),
    is read and written, which also says what is wrong: InputError and MachineError as those raise them.
    """
    done = 0
    if isinstance(source, InputFile):
        done = platform.copy_range(source.fileno(), start, target.fileno(), offset, count)
    if done < count:
        target.write(source.read(start + done, count - done), offset + done)
