"""An append-only log: what is sound is read back, what is torn is cut off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gguf_mla.errors import InputError
from gguf_mla.files.records import Reading, Records

if TYPE_CHECKING:
    from pathlib import Path


def is_number(line: str) -> bool:
    return line.isdigit()


def written(path: Path) -> bytes:
    with Records(path) as log:
        log.begin({"about": "numbers"})
        log.append(["1", "22"])
        log.append(["333"])
    return path.read_bytes()


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    whole = written(tmp_path / "log")
    past = Reading(tmp_path / "log", is_number)
    assert past.head == {"about": "numbers"}
    assert list(past) == ["1", "22", "333"]
    assert past.end == len(whole)


def test_a_log_cut_anywhere_is_continued_after_its_last_whole_line(tmp_path: Path) -> None:
    whole = written(tmp_path / "log")
    for length in range(len(whole)):
        (tmp_path / "log").write_bytes(whole[:length])
        past = Reading(tmp_path / "log", is_number)
        lines = list(past)
        assert lines == ["1", "22", "333"][: max(0, whole[:length].count(b"\n") - 1)]
        assert past.end == whole[:length].rfind(b"\n") + 1
        with Records(tmp_path / "log") as log:
            log.cut(past.end)
            if past.head is None:
                log.begin({"about": "numbers"})
            log.append(["7"])
        assert [*Reading(tmp_path / "log", is_number)] == [*lines, "7"]


@pytest.mark.parametrize("line", [b"x\n", b"\xff\n", b"\n"])
def test_nothing_after_an_unsound_line_counts(tmp_path: Path, line: bytes) -> None:
    whole = written(tmp_path / "log")
    (tmp_path / "log").write_bytes(whole + line + b"4\n")
    past = Reading(tmp_path / "log", is_number)
    assert list(past) == ["1", "22", "333"]
    assert past.end == len(whole)


@pytest.mark.parametrize("content", [b"", b"1\n2\n", b"[]\n", b"no JSON\n1\n", b"[" * 100_000 + b"\n"])
def test_without_a_sound_head_there_is_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log").write_bytes(content)
    past = Reading(tmp_path / "log", is_number)
    assert (past.head, list(past), past.end) == (None, [], 0)


def test_an_absent_log_is_an_empty_one_and_a_directory_an_error(tmp_path: Path) -> None:
    assert Reading(tmp_path / "absent", is_number).head is None
    with pytest.raises(InputError, match="Is a directory"):
        Reading(tmp_path, is_number)
    with pytest.raises(InputError, match="not a regular file"):
        Records(tmp_path)
