"""Bytes copied from file to file, inside the OS where it can: network file systems then copy on the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.files import platform

if TYPE_CHECKING:
    from gguf_mla.files.input import InputFile
    from gguf_mla.files.output import OutputFile


def copy_range(source: InputFile, start: int, target: OutputFile, offset: int, count: int) -> None:
    """Copy the `count` bytes at `start` of one file to `offset` of another.

    What the OS refuses to copy (another file system, no support, a full disk) is read and written, which also says
    what is wrong: InputError and MachineError as those raise them.
    """
    done = platform.copy_range(source.fileno(), start, target.fileno(), offset, count)
    if done < count:
        target.write(source.read(start + done, count - done), offset + done)
