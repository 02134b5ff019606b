"""Ranges of files by HTTP, over connections that are kept: no answer is trusted, and what fails is tried again."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError, MachineError
from gguf_mla.remote import spool
from gguf_mla.remote.repository import http
from gguf_mla.remote.traffic import TRAFFIC
from gguf_mla.remote.troubles import Patience, Trouble, asked_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gguf_mla.remote.repository import Repository

CONNECT_SECONDS, READ_SECONDS = 15.0, 30.0  # for a connection, and for the next bytes of an answer
REDIRECTS = 5
LARGE_HEADER = 1 << 16  # bytes of an answer's header, more is an error
MOVED = (301, 302, 303, 307, 308)
EXPIRED = (401, 403, 410)
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


@dataclass(frozen=True, eq=False)
class Address:
    """Where a file can be read for now."""

    url: str


class NotReachedError(Trouble):
    """A server that does not answer at all."""


class Source:
    """A file of a repository, and where it can be read: the hub says that, with a signature that expires."""

    def __init__(self, repository: Repository, name: str) -> None:
        self.repository, self.entry = repository, repository.files[name]
        self.name = repository.called(name)
        if self.entry.sha256 is not None:  # others are small, and not kept
            spool.check(self.name, self.entry.size)
        self._hub_url = repository.url(name)
        self._lock = threading.Lock()
        self._address: Address | None = None
        self._contents: dict[str, str] = {}

    def read(self, offset: int, view: memoryview, arrived: Callable[[int], object] = lambda _: None) -> None:
        """Fill a buffer from `offset` on; `arrived` hears how many bytes of it are there.

        Raises InputError where the hub refuses, MachineError when nothing comes any more and for a file that changed.
        """
        kept, content, done = spool.USE.spool, self.entry.sha256, 0
        if kept is None or content is None:
            self._fetch(offset, view, arrived)
            return
        while done < len(view):
            if count := kept.read(content, offset + done, view[done:]):
                done += count
                arrived(done)
                continue
            stop = done + kept.gap(content, offset + done, len(view) - done)
            self._fetch(offset + done, view[done:stop], functools.partial(_further, arrived, done))
            kept.write(content, offset + done, view[done:stop])
            done = stop

    def _fetch(self, offset: int, view: memoryview, arrived: Callable[[int], object]) -> None:
        patience, done = Patience(self.name), 0
        while done < len(view):
            try:
                for piece in self._range(offset + done, len(view) - done):
                    view[done : done + len(piece)] = piece
                    done += len(piece)
                    patience.renew()
                    arrived(done)
                if done < len(view):
                    raise Trouble("the answer ended early")  # noqa: TRY301 - it is one of many
            except Trouble as trouble:
                if done < len(view):
                    patience.wait(trouble)

    def _range(self, offset: int, count: int) -> Iterator[bytes]:
        """Yield the bytes of a range as they come; Trouble for an answer that is not that range."""
        headers = {"Range": f"bytes={offset}-{offset + count - 1}", "Accept-Encoding": "identity"}
        for _ in range(REDIRECTS):
            address = self._located()
            with self._lost(address), self._answer("GET", address.url, headers) as answer:
                if answer.status_code in MOVED:
                    self._move(address, _joined(address.url, answer.headers.get("location", "")))
                    continue
                self._check(answer, address, offset, count)
                yield from _pieces(answer, count)
                return
        raise Trouble("the server redirects without end", wrong=True)

    def _check(self, answer: Any, address: Address, offset: int, count: int) -> None:
        status = answer.status_code
        if status in EXPIRED and not self._is_hub(address.url):
            self._forget(address)
            raise Trouble(f"the address has expired (status {status})", wrong=True)
        _check_status(answer, self.name)
        if status == 200 and (offset, count) == (0, self.entry.size):
            return  # all of it is the range that was asked for, and its digest is compared
        if status != 206:
            raise Trouble(f"the server answers with status {status} where a range was asked for", wrong=True)
        found = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if found is None or tuple(map(int, found.groups())) != (offset, offset + count - 1, self.entry.size):
            raise Trouble("the server answers with another range than was asked for", wrong=True)
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise Trouble("the server answers with packed bytes", wrong=True)
        self._same_content(answer, address)

    def _same_content(self, answer: Any, address: Address) -> None:
        """Raise MachineError if the server that sends the bytes names another content than it did before."""
        content, place = _unquoted(answer.headers.get("etag", "")), address.url.partition("?")[0]
        with self._lock:
            before = self._contents.setdefault(place, content)
        if before != content:
            raise self._changed(before, content)

    def _located(self) -> Address:
        """Return where the file can be read, and ask the hub if that is not known."""
        with self._lock:
            if self._address is None:
                self._address = Address(self._resolved())
            return self._address

    @contextlib.contextmanager
    def _lost(self, address: Address) -> Iterator[None]:
        """Ask the hub again for the address of a server that cannot be reached: it may know another."""
        try:
            yield
        except NotReachedError:
            self._forget(address)
            raise

    def _forget(self, address: Address) -> None:
        with self._lock:
            if self._address is address:
                self._address = None

    def _move(self, address: Address, url: str) -> None:
        with self._lock:
            if self._address is address:
                self._address = Address(url)

    def _resolved(self) -> str:
        """Ask the hub for the address; Trouble where it may know later, MachineError where it has another content."""
        url = self._hub_url
        for _ in range(REDIRECTS):
            with self._answer("HEAD", url, {"Accept-Encoding": "identity"}) as answer:
                _check_status(answer, self.name)
                named = _unquoted(answer.headers.get("x-linked-etag") or answer.headers.get("etag", ""))
                if named and named != self.entry.etag:
                    raise self._changed(self.entry.etag, named)
                if answer.status_code not in MOVED:
                    return url
                url = _joined(url, answer.headers.get("location", ""))
            if not self._is_hub(url):
                return url
        raise Trouble("the hub redirects without end", wrong=True)

    @contextlib.contextmanager
    def _answer(self, method: str, url: str, headers: dict[str, str]) -> Iterator[Any]:
        """Send a request and yield the answer; what the network does wrong becomes Trouble.

        The token goes to the hub alone: to no host that it redirects to.
        """
        library = http()
        told = self.repository.headers(token=self._is_hub(url)) | headers
        TRAFFIC.requested()
        try:
            with _client().stream(method, url, headers=told) as answer:
                if sum(len(key) + len(value) for key, value in answer.headers.raw) > LARGE_HEADER:
                    raise Trouble("the server answers with a header that has no end", wrong=True)
                yield answer
        except (library.ConnectError, library.ConnectTimeout) as error:
            raise NotReachedError(f"the server cannot be reached ({_words(error)})") from None
        except library.TimeoutException as error:
            raise Trouble(f"nothing came for {READ_SECONDS:.0f} seconds ({type(error).__name__})") from None
        except (library.HTTPError, library.InvalidURL, library.StreamError, OSError, ValueError) as error:
            raise Trouble(f"the connection failed ({_words(error)})") from None

    def _is_hub(self, url: str) -> bool:
        return _origin(url) == _origin(self.repository.endpoint)

    def _changed(self, expected: str, found: str) -> MachineError:
        what = "has changed on the hub since this run began to read it"
        remedy = "Run the command again; what an earlier run left of the old file is refused"
        return MachineError(what, file=self.name, expected=expected, found=found or "no ETag", remedy=remedy)


def _further(arrived: Callable[[int], object], before: int, count: int) -> None:
    arrived(before + count)


def _pieces(answer: Any, count: int) -> Iterator[bytes]:
    """Yield a body as it comes; Trouble for one that is longer than `count` bytes."""
    left = count
    for piece in answer.iter_raw():
        if len(piece) > left:
            raise Trouble("the answer is longer than it says", wrong=True)
        left -= len(piece)
        TRAFFIC.passed(len(piece))
        yield piece


def _check_status(answer: Any, name: str) -> None:
    """Raise Trouble for a failure that may pass, InputError for one that will not."""
    status = answer.status_code
    if status in (408, 425, 429) or status >= 500:
        raise Trouble(f"the server answers with status {status}", asked=asked_seconds(answer.headers))
    if status in (401, 403):
        remedy = "Give a token that may read it: hf auth login, or HF_TOKEN"
        raise InputError(f"may not be read (status {status})", file=name, remedy=remedy)
    if status in (404, 410, 416, 451):
        raise InputError(f"is not there (status {status})", file=name, remedy="Look at the repository's page")
    if 400 <= status < 500:
        raise Trouble(f"the server refuses the request (status {status})", wrong=True)


@functools.cache
def _client() -> Any:
    library = http()
    timeout = library.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, pool=None)
    limits = library.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=120.0)
    return library.Client(timeout=timeout, limits=limits, follow_redirects=False)


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = http().URL(url)
    port = parsed.port or {"http": 80, "https": 443}.get(parsed.scheme)
    return parsed.scheme, parsed.host, port


def _joined(url: str, location: str) -> str:
    try:
        joined = http().URL(url).join(location)
    except Exception as error:  # of the library, which names none of its own for it
        raise Trouble(f"the hub redirects to no address ({_words(error)})", wrong=True) from None
    if joined.scheme not in ("http", "https"):
        raise Trouble("the hub redirects to no address", wrong=True)
    return str(joined)


def _unquoted(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
