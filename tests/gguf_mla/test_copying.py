"""Bytes copied between files, by the OS or, where it refuses, by reading and writing."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla.errors import InputError
from gguf_mla.files.input import InputFile
from gguf_mla.files.os_copy import copy_range
from gguf_mla.files.output import OutputFile

if TYPE_CHECKING:
    from pathlib import Path

DATA = np.random.default_rng(0).integers(0, 256, 30000, np.uint8).tobytes()
copy_file_range = os.copy_file_range


def refuses(*_: int) -> int:
    raise OSError(errno.EXDEV, "another file system")


def refuses_after_a_while(source: int, target: int, count: int, start: int, offset: int) -> int:
    if start > 8000:
        raise OSError(errno.EIO, "no more")
    return copy_file_range(source, target, min(count, 1000), start, offset)


@pytest.mark.parametrize("copy", [copy_file_range, refuses, refuses_after_a_while])
def test_the_bytes_arrive_and_nothing_else_changes(
    copy: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_bytes(DATA)
    monkeypatch.setattr(os, "copy_file_range", copy)
    with InputFile(tmp_path / "source") as source, OutputFile(tmp_path / "target", 20000) as target:
        target.write(np.full(20000, 0x5A, np.uint8), 0)
        copy_range(source, 4097, target, 33, 12345)
        target.commit()
    written = (tmp_path / "target").read_bytes()
    assert written == b"\x5a" * 33 + DATA[4097 : 4097 + 12345] + b"\x5a" * (20000 - 33 - 12345)


def test_a_source_that_ends_too_early_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)
    with (
        InputFile(tmp_path / "source") as source,
        OutputFile(tmp_path / "target", 20000) as target,
        pytest.raises(InputError, match="ends too early"),
    ):
        copy_range(source, 29000, target, 0, 2000)
