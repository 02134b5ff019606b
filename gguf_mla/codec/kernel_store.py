"""Compiled kernels as bytes on disk, in a directory that only this user can write, checked before they are used.

A kernel that cannot be read, for whatever reason, is one that is not there: it is compiled again. What is read is
unpickled by numba, so that whoever could write it could run code here: directory and file must be this user's own and
closed to others, and a digest shows that the file is whole and belongs to this program, these sources and this machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import uuid
from typing import TYPE_CHECKING

from gguf_mla.files import platform

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = hashlib.sha256
SUFFIX = ".nbc"  # as numba calls its own, so that what clears those clears these


class NotKeptError(OSError):
    """Why a directory is not used."""


class Store:
    """A directory of kernels; it is made when the first is kept."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def read(self, name: str, key: bytes) -> bytes | None:
        """Return what was kept under a name and a key; None if that is not there, not whole or not this user's."""
        try:
            self._check()
            content = _own_file(self.directory / (name + SUFFIX))
        except OSError:
            return None
        size = DIGEST().digest_size
        digest, payload = content[:size], content[size:]
        return payload if digest == _digest(key, payload) else None

    def write(self, name: str, key: bytes, payload: bytes) -> None:
        """Keep bytes in place of those of the name, whole or not at all; OSError where that is impossible."""
        self._make()
        path = self.directory / (name + SUFFIX)
        unfinished = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            unfinished.touch(0o600, exist_ok=False)
            unfinished.write_bytes(_digest(key, payload) + payload)
            unfinished.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise

    def accepts(self) -> bool:
        """Tell whether `write` can be expected to succeed; the directory is made."""
        try:
            self._make()
        except OSError:
            return False
        return os.access(self.directory, os.W_OK)

    def _make(self) -> None:
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self._check()

    def _check(self) -> None:
        if not platform.is_private(self.directory.lstat()):
            raise NotKeptError("it belongs to another user, or others can write to it")


def _own_file(path: Path) -> bytes:
    """Return a file's content; OSError if it is not a file of this user that others cannot write."""
    fd = platform.open_input(path)
    with open(fd, "rb") as file:  # noqa: PTH123 - an open descriptor: what is asked about is what is read
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode) or not platform.is_private(state):
            raise NotKeptError("not a file of this user")
        return file.read()


def _digest(key: bytes, payload: bytes) -> bytes:
    """Return what goes first in a file; the key's length, so that no other key and payload give the same."""
    return DIGEST(len(key).to_bytes(8, "little") + key + payload).digest()
