"""What is kept of the hub's files: by their content, within a limit, and never a byte that was not written."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla.errors import InputError
from gguf_mla.remote import spool
from gguf_mla.remote.spool import Spool

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(1)
DATA = RNG.integers(0, 256, 1000, np.uint8).tobytes()
A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def read(kept: Spool, content: str, start: int, stop: int) -> bytes:
    view = bytearray(stop - start)
    return bytes(view[: kept.read(content, start, memoryview(view))])


def write(kept: Spool, content: str, start: int, stop: int) -> None:
    kept.write(content, start, memoryview(DATA[start:stop]))


@pytest.fixture
def kept(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", 1000)


def test_ranges_are_read_as_far_as_they_go(kept: Spool) -> None:
    write(kept, A, 100, 200)
    write(kept, A, 200, 300)
    write(kept, A, 400, 500)
    write(kept, A, 250, 450)  # it lies over others: they stay
    assert read(kept, A, 150, 600) == DATA[150:300]
    assert read(kept, A, 50, 200) == b""
    assert [kept.gap(A, 300, 500), kept.gap(A, 0, 50), kept.gap(B, 0, 50), kept.gap(A, 500, 9)] == [100, 50, 50, 9]


def test_what_was_kept_is_there_after_a_restart(tmp_path: Path, kept: Spool) -> None:
    write(kept, A, 0, 300)
    with pytest.raises(InputError, match="lock: another process keeps files in this spool"):
        Spool(tmp_path / "spool", 1000)
    kept.close()
    again = Spool(tmp_path / "spool", 1000)
    assert (again.nbytes, read(again, A, 10, 300)) == (300, DATA[10:300])


def test_what_was_not_used_for_longest_goes(tmp_path: Path, kept: Spool) -> None:
    for content in (A, B):
        write(kept, content, 0, 400)
    kept.close()
    kept = Spool(tmp_path / "spool", 1000)
    assert read(kept, A, 0, 400) == DATA[:400]  # so B was not used for longer
    write(kept, C, 0, 300)
    assert [bool(read(kept, content, 0, 10)) for content in (A, B, C)] == [True, False, True]
    write(kept, C, 300, 1000)
    assert kept.nbytes <= 1000
    assert sum(path.stat().st_size for path in (tmp_path / "spool").glob("[abc]*[abc]")) <= 1000


@pytest.mark.parametrize("damage", ["other bytes", "cut off", "gone", "note"])
def test_what_is_damaged_counts_as_not_there(tmp_path: Path, kept: Spool, damage: str) -> None:
    write(kept, A, 0, 300)
    kept.close()
    data, note = tmp_path / "spool" / A, tmp_path / "spool" / f"{A}.ranges"
    if damage == "other bytes":
        data.write_bytes(DATA[:299] + bytes([DATA[299] ^ 1]))
    if damage == "cut off":
        data.write_bytes(DATA[:100])
    if damage == "gone":
        data.unlink()
    if damage == "note":
        note.write_text(note.read_text()[:-3] + "\n0 99999999999999999999 00000000\nnonsense")
    kept = Spool(tmp_path / "spool", 1000)
    assert read(kept, A, 0, 200) == b""
    write(kept, A, 0, 200)
    assert read(kept, A, 0, 200) == DATA[:200]


def test_one_damaged_range_costs_itself_alone_and_once(tmp_path: Path, kept: Spool) -> None:
    for start in (0, 100, 200):
        write(kept, A, start, start + 100)
    kept.close()
    data = tmp_path / "spool" / A
    data.write_bytes(DATA[:150] + bytes([DATA[150] ^ 1]) + DATA[151:300])
    kept = Spool(tmp_path / "spool", 1000)
    assert [len(read(kept, A, start, 300)) for start in (0, 100, 200)] == [100, 0, 100]
    write(kept, A, 100, 200)
    kept.close()
    again = Spool(tmp_path / "spool", 1000)
    assert (again.nbytes, read(again, A, 0, 300)) == (300, DATA[:300])


def test_a_torn_line_spoils_no_other(tmp_path: Path, kept: Spool) -> None:
    write(kept, A, 0, 100)
    with (tmp_path / "spool" / f"{A}.ranges").open("a") as note:
        note.write("\n100 10")
    write(kept, A, 200, 300)
    kept.close()
    again = Spool(tmp_path / "spool", 1000)
    assert (read(again, A, 0, 100), read(again, A, 200, 300)) == (DATA[:100], DATA[200:300])


def test_a_full_disk_takes_no_more_and_loses_nothing(kept: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    write(kept, A, 0, 300)
    write(kept, B, 0, 300)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gguf_mla.remote.spool.platform.write_at", full)
        write(kept, C, 0, 100)
    write(kept, C, 100, 200)
    assert [read(kept, content, 0, 300) for content in (A, B, C)] == [DATA[:300], DATA[:300], b""]


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GGUF_MLA_SPOOL", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert spool.directory() == tmp_path / "gguf-mla-spool"
    monkeypatch.setenv("GGUF_MLA_SPOOL", str(tmp_path / "other"))
    spool.use("2G")
    assert spool.USE.spool is not None
    assert (tmp_path / "other" / "lock").is_file()
    spool.use(None)
    assert spool.USE.spool is None


def test_a_place_that_cannot_be_one_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spool.use(None)
    for place in ("file", "file/below"):
        monkeypatch.setenv("GGUF_MLA_SPOOL", str(tmp_path / place))
        with pytest.raises(InputError, match=r"no spool can be there .*GGUF_MLA_SPOOL"):
            spool.use("2G")
        assert spool.USE.spool is None


def test_a_file_that_no_spool_of_this_size_holds_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spool.check("x.safetensors", 1 << 40)  # without a spool
    monkeypatch.setenv("GGUF_MLA_SPOOL", str(tmp_path))
    spool.use("2M")
    try:
        spool.check("x.safetensors", 2_000_000)
        with pytest.raises(InputError, match=r"x\.safetensors: is larger than the whole spool .*--spool"):
            spool.check("x.safetensors", 2_000_001)
    finally:
        spool.use(None)
