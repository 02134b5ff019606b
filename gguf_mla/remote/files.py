"""Files and folders of the hub as everything above reads them."""

from __future__ import annotations

import functools
import hashlib
import itertools
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.files.clock import stage
from gguf_mla.files.input import InputFile
from gguf_mla.files.readable import Folder
from gguf_mla.remote.link import Source
from gguf_mla.remote.tape import DIGEST_AHEAD, TAPE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.files.readable import Readable
    from gguf_mla.remote.location import HubPath
    from gguf_mla.remote.repository import Entry, Repository

HEAD_BYTES = 128 << 10  # read first: the header of most shards, the small beginning of a GGUF file
AHEAD_BYTES = 8 << 20  # read at most at a time where one read goes on where the last has ended
LARGE = 1 << 20  # bytes that are read as they are asked for, without a look at what comes after them
HEADS = 8  # read at a time when a checkpoint is opened
WHOLE_BYTES = 16 << 20  # read at a time to compare a whole file
_numbers = itertools.count()


class HubFile:
    """A file of the hub, read by ranges.

    digest   what is known of its content
    vouched  whether all of it has to be compared in the end
    """

    def __init__(self, path: HubPath, repository: Repository) -> None:
        if path.inside not in repository.files:
            raise repository.missing(path.inside)
        self.path = path
        self.source = Source(repository, path.inside)
        self.number = next(_numbers)
        self.digest = Digest(self.source.entry)
        self.vouched = False
        self._lock = threading.Lock()
        self._block: tuple[int, NDArray[np.uint8]] | None = None
        self._head: Future[NDArray[np.uint8]] | None = None

    @property
    def name(self) -> str:
        """Where it lies, for people."""
        return str(self.path)

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self.source.entry.size

    @property
    def identity(self) -> str:
        """What the hub names its content by."""
        return f"hub {self.source.entry.etag}"

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """Return the `count` bytes at `offset`; InputError when there are fewer, MachineError when reading fails."""
        if offset + count > self.size:
            expected, found = f"at least {offset + count} bytes", f"{self.size} bytes"
            raise InputError("the file ends too early", file=self.name, expected=expected, found=found)
        out = np.empty(count, np.uint8)
        with stage("read"):
            TAPE.read(self, offset, out)
        return out

    def will_read(self, offset: int, count: int) -> None:
        """Say that a range is wanted soon."""
        TAPE.wanted(self, offset, count)

    def was_read(self, offset: int, count: int) -> None:
        """Say that a range will not be wanted again, which is known: each is announced once."""

    def begin(self) -> None:
        """Fetch the beginning in the background."""
        self._head = _heads().submit(self._fetched, 0, min(self.size, HEAD_BYTES))

    def check(self) -> None:
        """Raise InputError where the whole file was read, or has to be, and it is not what the hub says it is."""
        found, entry = self.digest.found, self.source.entry
        if found is None and self.vouched:
            found = self._digest()
        if found not in (None, entry.etag):
            raise differs(self.name, entry.etag)

    def _digest(self) -> str:
        hashed = _new_digest(self.source.entry)
        for start in range(0, self.size, WHOLE_BYTES):
            data = np.empty(min(WHOLE_BYTES, self.size - start), np.uint8)
            self.source.read(start, data.data)
            hashed.update(data.data)
        return str(hashed.hexdigest())

    def fetch(self, offset: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with bytes that nobody has announced."""
        if len(out) == self.size:
            self._whole(out)
            return
        if len(out) >= LARGE:
            self._read(offset, out)
            return
        with self._lock:
            while len(out):
                start, block = self._covering(offset, len(out))
                piece = block[offset - start :][: len(out)]
                out[: len(piece)] = piece
                out, offset = out[len(piece) :], offset + len(piece)

    def _covering(self, offset: int, count: int) -> tuple[int, NDArray[np.uint8]]:
        """Return a block with the byte at `offset`: the last again, or a new one that is longer where reads go on."""
        if self._head is not None:
            self._block, self._head = (0, self._head.result()), None
        last = self._block
        if last is not None and last[0] <= offset < last[0] + len(last[1]):
            return last
        if offset == 0:
            count = max(count, HEAD_BYTES)
        elif last is not None and offset == last[0] + len(last[1]):
            count = max(count, min(2 * len(last[1]), AHEAD_BYTES))
        self._block = offset, self._fetched(offset, min(count, self.size - offset))
        return self._block

    def _fetched(self, offset: int, count: int) -> NDArray[np.uint8]:
        data = np.empty(count, np.uint8)
        self._read(offset, data)
        return data

    def _read(self, offset: int, out: NDArray[np.uint8]) -> None:
        self.source.read(offset, out.data)
        self.digest.go_on(offset, out)

    def _whole(self, out: NDArray[np.uint8]) -> None:
        """Read all of a small file, and compare it with its digest."""
        self.source.read(0, out.data)
        hashed = _new_digest(self.source.entry)
        hashed.update(out.data)
        if hashed.hexdigest() != self.source.entry.etag:
            raise differs(self.source.name, self.source.entry.etag)


class CachedFile(InputFile):
    """A file of the hub that its cache holds."""

    def will_read(self, offset: int, count: int) -> None:
        """Ask the OS to fetch a range in the background, unless it is only asked what will be wanted."""
        if not TAPE.notes:
            super().will_read(offset, count)


class Digest:
    """The SHA-256 of a file whose bytes come in their order, or almost; of one that is read otherwise nothing is known.

    What waits for bytes before it is bounded, that of all files together: those that have waited longest are given up.

    found  the digest, once all bytes have come; None before, and where too many have not come in their order
    """

    _lock = threading.Lock()  # of all files
    _waiting: ClassVar[dict[Digest, int]] = {}  # bytes that a file holds, where it holds any

    def __init__(self, entry: Entry) -> None:
        self._size, self._at, self._hash = entry.size, 0, hashlib.sha256()
        self._early: dict[int, NDArray[np.uint8]] = {}
        self._lost = entry.sha256 is None
        self.found: str | None = None

    def add(self, offset: int, data: NDArray[np.uint8]) -> None:
        """Count bytes that came; they are kept until those before them have come."""
        with self._lock:
            self._add(offset, data)

    def go_on(self, offset: int, data: NDArray[np.uint8]) -> None:
        """Count bytes that came, if those before them have come; they are not kept."""
        with self._lock:
            if offset <= self._at:
                self._add(offset, data)

    def _add(self, offset: int, data: NDArray[np.uint8]) -> None:
        if self._lost or offset + len(data) <= self._at:
            return
        self._early[offset] = data
        for start in sorted(self._early):
            if start > self._at:
                break
            piece = self._early.pop(start)
            self._hash.update(piece[self._at - start :].data)
            self._at = max(self._at, start + len(piece))
        if self._at == self._size:
            self.found = self._hash.hexdigest()
        self._hold()

    def _hold(self) -> None:
        self._waiting.pop(self, None)  # to come last
        if self._early:
            self._waiting[self] = sum(map(len, self._early.values()))
        while sum(self._waiting.values()) > DIGEST_AHEAD:
            next(iter(self._waiting)).give_up()

    def give_up(self) -> None:
        """Let go of what waits; nothing will be known of the content."""
        self._waiting.pop(self, None)
        self._early.clear()
        self._lost = True


class HubFolder(Folder):
    """A folder of a repository."""

    def __init__(self, path: HubPath, repository: Repository) -> None:
        self.path: HubPath = path
        self._repository = repository

    def names(self, under: str = "") -> list[str]:
        """Return the names of the files in the folder, or "under/NAME" for those in a folder of it, sorted."""
        inside = "/".join(part for part in (self.path.inside, under) if part)
        start, cut = (f"{inside}/" if inside else ""), (f"{self.path.inside}/" if self.path.inside else "")
        found = (name for name in self._repository.files if name.startswith(start) and "/" not in name[len(start) :])
        return sorted(name.removeprefix(cut) for name in found)

    def open(self, name: str) -> Readable:
        """Return a file to read; InputError when it is missing."""
        file = open_file(self.path / name, self._repository)
        if isinstance(file, HubFile) and name.endswith(".safetensors"):
            file.begin()
        return file


@functools.cache
def open_file(path: HubPath, repository: Repository) -> Readable:
    """Return a file of a repository, one object for each: from the hub's cache where that has it."""
    cached = repository.cached(path.inside) if path.inside in repository.files else None
    return HubFile(path, repository) if cached is None else CachedFile(cached)


def vouch(file: Readable) -> None:
    """Have a file of the hub compared whole in the end; what its cache holds lies on this machine."""
    if isinstance(file, HubFile):
        file.vouched = True


def check(file: Readable) -> None:
    """Compare a file of the hub with its digest, as far as that can be told."""
    if isinstance(file, HubFile):
        file.check()


def differs(name: str, expected: str) -> InputError:
    """Return the error for bytes that are not those of the hub."""
    what = "what came over the network is not the file that the hub has"
    return InputError(what, file=name, expected=f"digest {expected}", remedy="Run the command again")


def _new_digest(entry: Entry) -> Any:
    """Return a digest as the hub names content by: SHA-256 of large files, SHA-1 of git's blob of others."""
    if entry.sha256 is not None:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % entry.size, usedforsecurity=False)


@functools.cache
def _heads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(HEADS, "gguf-mla-heads")
