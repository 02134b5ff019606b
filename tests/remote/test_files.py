"""Files of the hub by themselves: what is known of their content, what is kept, what the cache's are asked."""

from __future__ import annotations

import hashlib
import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_mla.files import input as files_input
from gguf_mla.remote import files, traffic
from gguf_mla.remote.location import HubPath, parse
from gguf_mla.remote.repository import Entry
from gguf_mla.remote.tape import TAPE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RNG = np.random.default_rng(1)


def entry_of(data: NDArray[np.uint8]) -> Entry:
    found = hashlib.sha256(data.data).hexdigest()
    return Entry(len(data), found, found)


def test_what_waits_to_be_hashed_is_bounded_over_all_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "DIGEST_AHEAD", 100)
    monkeypatch.setattr(files.Digest, "_waiting", {})
    data = RNG.integers(0, 256, 80, np.uint8)
    first, second = (files.Digest(entry_of(data)) for _ in range(2))
    for digest in (first, second):
        digest.add(10, data[10:])
    assert sum(files.Digest._waiting.values()) == 70
    for digest in (first, second):
        digest.add(0, data[:10])
    assert first.found is None  # it was given up for the other
    assert second.found == hashlib.sha256(data.data).hexdigest()
    assert not files.Digest._waiting


def test_a_file_that_is_read_from_its_beginning_to_its_end_is_compared() -> None:
    data = RNG.integers(0, 256, 5 << 20, np.uint8)
    repository: Any = SimpleNamespace(files={"m.gguf": entry_of(data)}, url=str, called=str)
    file = files.HubFile(HubPath("x", "y@c", "m.gguf"), repository)

    def read(offset: int, view: memoryview) -> None:
        view[:] = data[offset : offset + len(view)].data

    file.source.read = read  # type: ignore[method-assign,assignment]
    ends = [0, *(1 << bits for bits in range(16, 23)), len(data)]  # as the head of a GGUF file is read
    for start, stop in itertools.pairwise(ends):
        assert (file.read(start, stop - start) == data[start:stop]).all()
    assert file.digest.found == file.source.entry.etag


def test_what_a_cached_file_is_only_asked_is_not_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched: list[int] = []
    monkeypatch.setattr(files_input.platform, "will_read", lambda _fd, offset, _count: fetched.append(offset))
    (tmp_path / "x").write_bytes(bytes(100))
    file = files.CachedFile(tmp_path / "x")
    assert TAPE.place(lambda: file.will_read(0, 10)) == (-1, 0)
    assert fetched == []
    file.will_read(20, 10)
    assert fetched == [20]


def test_the_rate_needs_a_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(traffic.time, "monotonic", lambda: now)
    books = traffic.Traffic()
    for _ in range(1000):
        now += 0.11
        books.passed(11)
    assert len(books._recent) <= traffic.SAMPLES
    assert abs(books.rate() - 100) < 1


@pytest.mark.parametrize(
    ("text", "is_id"),
    [
        ("deepseek-ai/DeepSeek-V3.1", True),
        ("unsloth/X-GGUF:UD-Q2_K_XL", True),
        ("unsloth/X-GGUF:x.gguf", True),
        ("hf://owner/x.gguf", True),
        ("models/x.gguf", False),
        ("models/x.imatrix.dat", False),
        ("models/deep/x", False),
    ],
)
def test_a_file_that_is_missing_is_not_looked_for_on_the_hub(text: str, is_id: bool) -> None:
    assert (parse(text) is not None) is is_id
