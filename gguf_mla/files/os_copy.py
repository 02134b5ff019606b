"""Copy bytes from file to file inside the kernel, which network file systems do on the server."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from gguf_mla.files.input import InputFile

if TYPE_CHECKING:
    from gguf_mla.files.output import OutputFile
    from gguf_mla.files.readable import Readable


def copy_range(source: Readable, start: int, target: OutputFile, offset: int, count: int) -> None:
    """Copy the `count` bytes at `start` of one file to `offset` of another.

    What does not lie on this machine, and what the kernel refuses to copy (another file system, no support, a full
    disk), is read and written, which also says what is wrong: InputError and MachineError as those raise them.
    """
    done = 0
    if isinstance(source, InputFile):
        done = _in_kernel(source.fileno(), start, target.fileno(), offset, count)
    if done < count:
        target.write(source.read(start + done, count - done), offset + done)


def _in_kernel(source: int, start: int, target: int, offset: int, count: int) -> int:
    """Return how many bytes the kernel copied."""
    done, copied = 0, 1
    with contextlib.suppress(OSError):
        while copied and done < count:
            copied = os.copy_file_range(source, target, count - done, start + done, offset + done)
            done += copied
    return done
