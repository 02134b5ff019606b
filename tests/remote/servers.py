"""A hub and the servers that it sends readers to, on this machine, with every fault that the real ones have.

    HEAD, GET  hub  /api/models/OWNER/NAME/revision/REVISION, /OWNER/NAME/resolve/REVISION/FILE
    GET        cdn  /COMMIT/FILE?signature=N
    POST, PUT       what uploads take (tests/remote/uploads.py): of all repositories of one owner

A revision is the name of a plan of faults, and each has a commit of its own; all hold the same files.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.remote import uploads
from tests.remote.plans import Link, Plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOKEN = "hf_secret"
PIECE = 1 << 16
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class Books:
    """What was asked of the servers."""

    def __init__(self) -> None:
        self.ranges: list[tuple[float, str, str, int, int]] = []  # time, commit, file, first, bytes sent
        self.requests: Counter[str] = Counter()
        self.leaked: list[str] = []
        self.flow: list[tuple[float, int]] = []

    def of(self, commit: str) -> list[tuple[str, int, int]]:
        """Return file, first byte and how many bytes were sent, for each range of a commit."""
        return [(file, first, count) for _, known, file, first, count in self.ranges if known == commit]


class Network:
    """The hub, its CDN and a further host, listening; as a context, until the end."""

    def __init__(self, directory: Path, link: Link | None = None) -> None:
        self.directory, self.link, self.books = directory, link or Link(), Books()
        self.plans: dict[str, Plan] = {}
        self.commits: dict[str, str] = {}
        self.contents: dict[str, str] = {}  # what the CDN says of a file: an ETag by name, where it is not the digest
        self._signatures: dict[str, int] = {}
        self._digests: dict[str, tuple[float, str]] = {}
        self.store = uploads.Store()
        self.hub, self.cdn, self.other, self.storage = (_Server(self, kind) for kind in (_Hub, _Cdn, _Cdn, _Storage))

    def __enter__(self) -> Self:
        for server in (self.hub, self.cdn, self.other, self.storage):
            server.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self.hub, self.cdn, self.other, self.storage):
            server.stop()

    @property
    def environment(self) -> dict[str, str]:
        """What a child is told so that it asks these servers."""
        return {
            "HF_ENDPOINT": self.hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def commit(self, revision: str) -> str:
        """Return the commit of a revision."""
        commit = hashlib.sha1(revision.encode()).hexdigest() if not re.fullmatch("[0-9a-f]{40}", revision) else revision
        if commit != revision:
            self.commits[commit] = revision
        return commit

    def plan(self, commit: str) -> Plan:
        """Return the plan of a commit."""
        return self.plans.setdefault(self.commits.get(commit, ""), Plan())

    def names(self) -> list[str]:
        """Return the names of all files."""
        return sorted(p.relative_to(self.directory).as_posix() for p in self.directory.rglob("*") if p.is_file())

    def digest(self, name: str) -> str:
        """Return how the hub names a file's content."""
        path = self.directory / name
        changed = path.stat().st_mtime
        if self._digests.get(name, (None,))[0] != changed:
            data = path.read_bytes()
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            self._digests[name] = changed, hashlib.sha256(data).hexdigest() if is_large(name) else blob
        return self._digests[name][1]

    def signed(self, commit: str, reads: int | None = None) -> str:
        """Return a signature that holds for some reads."""
        signature = f"{commit[:8]}{len(self._signatures)}"
        self._signatures[signature] = 1 << 30 if reads is None else reads
        return signature

    def is_signed(self, signature: str) -> bool:
        """Whether a signature holds for one more read."""
        self._signatures[signature] = self._signatures.get(signature, 0) - 1
        return self._signatures[signature] >= 0

    def expire(self) -> None:
        """Let all signatures expire."""
        self._signatures = dict.fromkeys(self._signatures, 0)


def is_large(name: str) -> bool:
    """Whether the hub stores a file as a large one."""
    return name.endswith((".safetensors", ".gguf", ".dat"))


class _Server:
    """A server in threads of this process, which can go away for a while and come back at the same address."""

    def __init__(self, network: Network, handler: type[Handler]) -> None:
        self._network, self._handler = network, handler
        self._http: ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        handler = type("Handler", (self._handler,), {"network": self._network})
        self._http = _Quiet(("127.0.0.1", self._port), handler)
        self._http.daemon_threads = True
        self._port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        assert self._http is not None
        self._http.shutdown()
        self._http.server_close()
        self._http.cut()


class _Quiet(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *_: Any) -> None:
        """Readers that go away are what this is about."""

    def cut(self) -> None:
        """End every connection."""
        for request in [*self._open]:
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    network: Network
    wbufsize = 0
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def body(self) -> bytes:
        """Return what was sent with a request."""
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send an answer whole."""
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Hub(Handler):
    """The hub itself: what a repository holds, and where its large files are."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        net, path = self.network, unquote(urlsplit(self.path).path)
        net.books.requests["hub"] += 1
        time.sleep(net.link.latency)
        if found := re.fullmatch(rf"/api/models/((?:{uploads.OWNER}|stranger)/[^/]+)(?:/revision/(.+))?", path):
            uploads.info(net, self, found[1], found[2])
        elif found := re.fullmatch(rf"/({uploads.OWNER}/[^/]+)/resolve/([^/]+)/(.+)", path):
            content = net.store.content(found[1], found[3], found[2])
            _send(self, content, {"X_Repo_Commit": found[2], "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, "")
        elif found := re.fullmatch(r"/api/models/[^/]+/[^/]+(?:/revision/(.+))?", path):
            self._info(found[1] or "main")
        elif found := re.fullmatch(r"/[^/]+/[^/]+/resolve/([^/]+)/(.+)", path):
            self._resolve(net.commit(found[1]), found[2])
        else:
            self.answer(404, X_Error_Code="RepoNotFound")

    def do_POST(self) -> None:
        net, path, body = self.network, unquote(urlsplit(self.path).path), self.body()
        net.books.requests["hub"] += 1
        if not path.startswith("/api/complete/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, b"{}", X_Error_Message="Invalid credentials")
        elif not uploads.refused(net, self):
            uploads.post(net, self, path, body)

    def do_DELETE(self) -> None:
        uploads.delete(self.network, self, unquote(urlsplit(self.path).path))

    def _info(self, revision: str) -> None:
        net = self.network
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, b"{}", X_Error_Code="GatedRepo", X_Error_Message="gated")
            return
        if revision == "nowhere":
            self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            return
        if "429-first" in net.plans.get(revision, Plan()).faults and net.plans[revision].next("cdn"):
            self.answer(429, b"{}", Retry_After="1")
            return
        siblings = []
        for name in net.names():
            size, digest = (net.directory / name).stat().st_size, net.digest(name)
            lfs = {"lfs": {"sha256": digest, "size": size, "pointerSize": 130}} if is_large(name) else {}
            siblings.append({"rfilename": name, "size": size, "blobId": digest[:40], **lfs})
        info = {"id": "x/y", "modelId": "x/y", "sha": net.commit(revision), "siblings": siblings, "tags": []}
        self.answer(200, json.dumps(info | {"private": False, "downloads": 0, "likes": 0}).encode())

    def _resolve(self, commit: str, name: str) -> None:
        net = self.network
        file = net.directory / name
        if not file.is_file():
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        told = {"X_Repo_Commit": commit, "ETag": f'"{net.digest(name)}"'}
        if not is_large(name):
            _send(self, file.read_bytes(), told, "")
            return
        plan = net.plan(commit)
        fault = plan.next("hub")
        url = f"{net.cdn.url}/{commit}/{name}?signature={net.signed(commit, 3 if 'expired' in plan.faults else None)}"
        url = {"dns": "http://nowhere.invalid/x", "no-address": "mailto:nobody"}.get(fault, url)
        size = str(file.stat().st_size)
        self.answer(302, Location=url, X_Linked_Size=size, X_Linked_Etag=told.pop("ETag"), **told)


class _Cdn(Handler):
    """Where large files lie: ranges, for those who have a signature."""

    def do_GET(self) -> None:
        net, parts = self.network, urlsplit(self.path)
        _, commit, name = unquote(parts.path).split("/", 2)
        net.books.requests["cdn"] += 1
        if self.headers.get("Authorization"):
            net.books.leaked.append(self.path)
        time.sleep(net.link.latency)
        if not net.is_signed(parse_qs(parts.query).get("signature", [""])[0]):
            self.answer(403, b"<Error>expired</Error>")
            return
        content = net.contents.get(name) or net.digest(name)
        fault = net.plan(commit).next("cdn") if "moved" not in parts.query else ""
        if fault == "redirect":
            self.answer(302, Location=f"{net.other.url}{self.path}&moved=1")
            return
        with (net.directory / name).open("rb") as file:
            first, sent = _send(self, file, {"ETag": f'"{content}"'}, fault)
        net.books.ranges.append((time.monotonic(), commit, name, first, sent))


class _Storage(Handler):
    """Where large files are sent to: nobody has to say who he is."""

    def do_PUT(self) -> None:
        net, body = self.network, self.body()
        if self.headers.get("Authorization"):
            net.books.leaked.append(self.path)
        if not uploads.refused(net, self):
            uploads.put(net, self, self.path, body)


def _send(handler: Handler, source: Any, told: dict[str, str], fault: str) -> tuple[int, int]:
    """Send a range of a file, or the fault that is planned; return where it began and how many bytes went."""
    size = len(source) if isinstance(source, bytes) else source.seek(0, 2)
    asked = _RANGE.fullmatch(handler.headers.get("Range", ""))
    first, last = (int(asked[1]), min(int(asked[2]), size - 1)) if asked else (0, size - 1)
    if early := _EARLY.get(fault):
        early(handler)
        return first, 0
    if fault == "whole":
        first, last, asked = 0, size - 1, None
    ranged = f"bytes {first + (fault == 'wrong-range')}-{last}/{size}"
    told = (
        told
        | ({"Content_Range": ranged} if asked else {})
        | ({"Content_Encoding": "gzip"} if fault == "packed" else {})
    )
    handler.send_response(206 if asked else 200)
    for key, value in ({"Content-Length": str(last + 1 - first)} | told).items():
        handler.send_header(key.replace("_", "-"), value)
    handler.end_headers()
    if handler.command == "HEAD":
        return first, 0
    return first, _body(handler, source, first, last + 1, fault)


def _body(handler: Handler, source: Any, first: int, stop: int, fault: str) -> int:
    net = handler.network
    cut = first + (stop - first) // 2 if fault in ("short", "reset", "stall") else stop
    at = first
    while at < cut:
        count = min(PIECE, cut - at)
        if isinstance(source, bytes):
            data = source[at : at + count]
        else:
            source.seek(at)
            data = source.read(count)
        net.link.send(len(data))
        handler.wfile.write(data)
        net.books.flow.append((time.monotonic(), len(data)))
        at += len(data)
    if cut < stop:
        if fault == "stall":
            time.sleep(4)
        if fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _close(handler)
    return at - first


def _close(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.close()


def _huge(handler: Handler) -> None:
    handler.send_response(206)
    with suppress(OSError):
        for _ in range(30):
            handler.wfile.write(b"X-Filler: " + b"x" * (1 << 20) + b"\r\n")
    _close(handler)


_EARLY: dict[str, Callable[[Handler], None]] = {
    "429": lambda h: h.answer(429, Retry_After="1", RateLimit='"resolvers";r=0;t=1', RateLimit_Policy='"x";q=1;w=300'),
    "503": lambda h: h.answer(503, b"busy"),
    "expired": lambda h: h.answer(403, b"expired"),
    "shut": _close,
    "huge-header": _huge,
}
