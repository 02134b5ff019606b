"""Bytes of the hub's files that are kept on the disk, so that whatever reads them next need not fetch them.

Of each file there is CONTENT, a file with holes where nothing is known, and CONTENT.ranges, a line for each range that
was written: where it begins, its bytes, their CRC-32. CONTENT is the SHA-256 that the hub states, so another revision
with the same file finds it, and another content has another name. A range counts once its bytes have been compared with
their checksum. When there would be too much, the file that was not used for longest goes.
"""

from __future__ import annotations

import os
import re
import threading
import zlib
from bisect import bisect_right
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gguf_mla import units
from gguf_mla.errors import InputError
from gguf_mla.files import platform
from gguf_mla.files.locked import open_locked
from gguf_mla.remote.traffic import TRAFFIC

PLACE = "GGUF_MLA_SPOOL"  # the environment variable that names the directory
PIECE = 16 << 20  # bytes of a range at most
RANGES = ".ranges"
TAKEN = "another process keeps files in this spool"
_CONTENT = re.compile(r"[0-9a-f]{64}")
_LINE = re.compile(r"([0-9]{1,18}) ([0-9]{1,9}) ([0-9a-f]{8})")


class Range(NamedTuple):
    """Bytes `start:stop` and their CRC-32."""

    start: int
    stop: int
    sum: int


@dataclass
class Kept:
    """What is there of one content: its ranges in order, and which of them were compared."""

    ranges: list[Range] = field(default_factory=list)
    sound: set[int] = field(default_factory=set)

    @property
    def nbytes(self) -> int:
        """How many bytes there are."""
        return sum(known.stop - known.start for known in self.ranges)

    def at(self, offset: int) -> tuple[int, Range | None]:
        """Return the range that has a byte, None where there is none, and where the next one has its place."""
        place = bisect_right(self.ranges, (offset, 1 << 62, 0))
        last = self.ranges[place - 1] if place else None
        return place, last if last is not None and offset < last.stop else None


class Spool:
    """A directory of ranges, for this process alone, of at most `limit` bytes; `nbytes` is how many there are."""

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory, self.limit = directory, limit
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock, self._lock_fd = threading.RLock(), open_locked(directory / "lock", taken=TAKEN)
        notes = [path for path in directory.glob(f"*{RANGES}") if _CONTENT.fullmatch(path.name.removesuffix(RANGES))]
        self._failed = False  # whether the disk takes no more
        self._kept: OrderedDict[str, Kept] = OrderedDict()  # the one that was not used for longest first
        for note in sorted(notes, key=lambda path: path.stat().st_mtime_ns):
            self._kept[note.name.removesuffix(RANGES)] = _noted(note)
        self.nbytes = sum(kept.nbytes for kept in self._kept.values())
        self._make_room(0, "")

    def close(self) -> None:
        """Let another process have the directory."""
        os.close(self._lock_fd)

    def read(self, content: str, offset: int, view: memoryview) -> int:
        """Fill the beginning of a buffer with what is kept from `offset` on; return how many bytes that were."""
        done = 0
        with self._lock:
            while done < len(view) and (count := self._read(content, offset + done, view[done:])):
                done += count
        return done

    def gap(self, content: str, offset: int, count: int) -> int:
        """Return after how many of `count` bytes something is kept again."""
        with self._lock:
            kept = self._kept.get(content)
            place = 0 if kept is None else kept.at(offset)[0]
            after = kept.ranges[place].start - offset if kept is not None and place < len(kept.ranges) else count
            return min(count, after)

    def write(self, content: str, offset: int, data: memoryview) -> None:
        """Keep bytes; those that are there already are left as they are. A disk that fails ends all keeping."""
        with self._lock:
            try:
                for start in range(0, 0 if self._failed else len(data), PIECE):
                    self._write(content, offset + start, data[start : start + PIECE])
            except OSError as error:
                self._failed = True  # what is kept stays
                TRAFFIC.tell(f"spool: {self.directory} takes no more ({error.strerror or error})")

    def _read(self, content: str, offset: int, view: memoryview) -> int:
        kept = self._kept.get(content)
        known = None if kept is None else kept.at(offset)[1]
        if kept is None or known is None:
            return 0
        if known.start not in kept.sound and not self._is_sound(content, known):
            kept.ranges.remove(known)
            self.nbytes -= known.stop - known.start
            return 0
        if content != next(reversed(self._kept)) or not kept.sound:
            self._kept.move_to_end(content)
            with suppress(OSError):
                os.utime(self._note(content))
        kept.sound.add(known.start)
        count = min(known.stop - offset, len(view))
        return count if self._fill(content, offset, view[:count]) else 0

    def _is_sound(self, content: str, known: Range) -> bool:
        data = memoryview(bytearray(known.stop - known.start))
        return self._fill(content, known.start, data) and zlib.crc32(data) == known.sum

    def _fill(self, content: str, offset: int, view: memoryview) -> bool:
        """Fill a buffer from the disk; False where that cannot be."""
        try:
            with (self.directory / content).open("rb", buffering=0) as file:
                file.seek(offset)
                done = 0
                while done < len(view) and (got := file.readinto(view[done:])):
                    done += got
                return done == len(view)
        except OSError:
            return False

    def _write(self, content: str, offset: int, data: memoryview) -> None:
        kept = self._kept.get(content, Kept())
        place, known = kept.at(offset)
        later = kept.ranges[place : place + 1]
        if known or (later and later[0].start < offset + len(data)) or not self._make_room(len(data), content):
            return
        new = Range(offset, offset + len(data), zlib.crc32(data))
        fd = os.open(self.directory / content, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            done = 0
            while done < len(data):
                done += platform.write_at(fd, data[done:], offset + done)
        finally:
            os.close(fd)
        with self._note(content).open("a", encoding="ascii") as note:
            # A line that a power cut has torn ends where the next begins.
            note.write(f"\n{new.start} {new.stop - new.start} {new.sum:08x}")
        kept.ranges.insert(place, new)
        kept.sound.add(new.start)
        self.nbytes += len(data)
        self._kept[content] = kept
        self._kept.move_to_end(content)

    def _make_room(self, nbytes: int, content: str) -> bool:
        """Remove what was not used for longest until so much fits; False where it does not beside `content` itself."""
        while self.nbytes + nbytes > self.limit:
            oldest = next((name for name in self._kept if name != content), None)
            if oldest is None:
                return False
            self.nbytes -= self._kept.pop(oldest).nbytes
            for path in (self._note(oldest), self.directory / oldest):  # without ranges nothing counts
                path.unlink(missing_ok=True)
        return True

    def _note(self, content: str) -> Path:
        return self.directory / f"{content}{RANGES}"


def _noted(note: Path) -> Kept:
    """Return what a note says, as far as it is sound; of ranges that overlap the last, for what was damaged before."""
    found = [_LINE.fullmatch(line) for line in note.read_text(encoding="ascii", errors="replace").splitlines()]
    lines = [(int(line[1]), int(line[2]), int(line[3], 16)) for line in found if line]
    kept = Kept()
    for start, count, checksum in reversed(lines):
        place, known = kept.at(start)
        later = kept.ranges[place : place + 1]
        if 0 < count <= PIECE and not known and not (later and later[0].start < start + count):
            kept.ranges.insert(place, Range(start, start + count, checksum))
    return kept


class _Use:
    """The spool of this process, if it has one."""

    spool: Spool | None = None


USE = _Use()


def use(size: str | None) -> None:
    """Keep at most so much from now on, or nothing; InputError where it cannot be, or another process has it."""
    before, USE.spool = USE.spool, None
    if before is not None:
        before.close()
    if size is None:
        return
    try:
        USE.spool = Spool(directory(), units.parse_size(size))
    except OSError as error:
        what = f"no spool can be there ({error.strerror})"
        remedy = f"Name another place by {PLACE}, or leave --spool out"
        raise InputError(what, file=directory(), remedy=remedy) from None


def check(name: str, nbytes: int) -> None:
    """Raise InputError for a file that no spool of this size holds: it would push out all others, and itself."""
    if USE.spool is not None and nbytes > USE.spool.limit:
        raise InputError(
            "is larger than the whole spool",
            file=name,
            expected=f"at most {units.size(USE.spool.limit)}",
            found=units.size(nbytes),
            remedy="Give --spool more room, or leave it out",
        )


def directory() -> Path:
    """Return where ranges are kept: what GGUF_MLA_SPOOL says, or gguf-mla-spool in the home of the hub's library."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = os.environ.get("HF_HOME") or Path(caches) / "huggingface"
    return Path(os.environ.get(PLACE) or Path(home) / "gguf-mla-spool")
