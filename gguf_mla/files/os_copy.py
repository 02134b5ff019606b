"""Bytes copied from file to file, inside the OS where it can: network file systems then copy on the server."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from gguf_mla.files import platform
from gguf_mla.files.input import InputFile

if TYPE_CHECKING:
    from gguf_mla.files.output import OutputFile
    from gguf_mla.files.readable import Readable


PIECE_BYTES = 1 << 24  # read and written at a time


def copy_range(source: Readable, start: int, target: OutputFile, offset: int, count: int) -> int:
    """Copy the `count` bytes at `start` of one file to `offset` of another; return their CRC-32.

    Of a file of this machine 0: the OS copies it, and another time costs little.

    What does not lie on this machine, and what the OS refuses to copy (another file system, no support, a full disk),
    is read and written, which also says what is wrong: InputError and MachineError as those raise them.
    """
    done = sum_ = 0
    if isinstance(source, InputFile):
        with source.opened() as from_, target.opened() as to:
            done = platform.copy_range(from_, start, to, offset, count)
    while done < count:
        piece = min(PIECE_BYTES, count - done)
        data = source.read(start + done, piece)
        target.write(data, offset + done)
        sum_ = 0 if isinstance(source, InputFile) else zlib.crc32(data.data, sum_)
        done += piece
    return sum_
