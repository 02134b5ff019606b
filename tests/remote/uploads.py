"""What a hub does for those who upload: it creates repositories, says what it lacks, takes that, and commits.

    POST  hub      /api/repos/create, /api/validate-yaml, /api/models/OWNER/NAME/preupload/BRANCH, .../commit/BRANCH
    POST, DELETE   /api/models/OWNER/NAME/branch/BRANCH
    POST  hub      /OWNER/NAME.git/info/lfs/objects/batch, .../verify, /api/complete/OID
    PUT   storage  /OID, /OID/PIECE

A file larger than `chunk` goes in pieces. `refuse` plants answers: a word of the path, how many times, the answer.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.remote.servers import Handler, Network

OWNER = "me"


@dataclass
class Repository:
    """What is in a repository: small files by name, large ones by name as the SHA-256 of their content."""

    private: bool = False
    commits: list[list[str]] = field(default_factory=lambda: [[]])  # the files of each
    small: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return hashlib.sha1(repr((self.commits, self.large, self.small)).encode()).hexdigest()


class Store:
    """All repositories, and the contents that were sent, committed or not."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.contents: dict[str, bytes] = {}
        self.pieces: dict[str, bytes] = {}
        self.sent: Counter[str] = Counter()  # bytes, by SHA-256
        self.chunk = 1 << 40
        self.rate: float | None = None
        self.refused: list[list[Any]] = []
        self.lock = threading.Lock()

    def refuse(self, word: str, status: int, body: bytes = b"{}", times: int = 1, **headers: str) -> None:
        """Plant an answer for the next requests whose path has a word in it."""
        self.refused.append([word, times, status, body, headers])

    def of(self, name: str, revision: str | None) -> Repository | None:
        """Return a repository at a branch, or at the commit that one of its branches has; None where there is none."""
        main = self.repositories.get(name)
        if main is None or revision in (None, "main"):
            return main
        branches = {key: found for key, found in self.repositories.items() if key.startswith(f"{name}@")}
        heads = {found.head: found for found in (main, *branches.values())}
        return branches.get(f"{name}@{revision}") or heads.get(str(revision))

    def content(self, repository: str, name: str, revision: str | None = None) -> bytes:
        """Return a file as a reader gets it."""
        found = self.of(repository, revision) or self.repositories[repository]
        return found.small[name] if name in found.small else self.contents[found.large[name]]


def refused(net: Network, handler: Handler) -> bool:
    """Answer with what is planted, if anything is."""
    for plant in net.store.refused:
        word, times, status, body, headers = plant
        if word in handler.path and times > 0:
            plant[1] -= 1
            handler.answer(status, body, **headers)
            return True
    return False


def info(net: Network, handler: Handler, name: str, revision: str | None = None) -> None:
    """Say what is in a repository."""
    found = net.store.of(name, revision)
    if found is None:
        missing = "RevisionNotFound" if name in net.store.repositories else "RepoNotFound"
        handler.answer(404, b"{}", X_Error_Code=missing)
        return
    siblings = [{"rfilename": file} for file in sorted([*found.small, *found.large])]
    said = {"id": name, "modelId": name, "sha": found.head, "siblings": siblings, "private": found.private, "tags": []}
    handler.answer(200, json.dumps(said).encode())


def post(net: Network, handler: Handler, path: str, body: bytes) -> None:
    """Answer a POST."""
    for pattern, answer in _POSTS.items():
        if found := re.fullmatch(pattern, path):
            said = answer(net, body, *found.groups())
            status, text, headers = said if isinstance(said, tuple) else (200, said, {})
            handler.answer(status, json.dumps(text).encode(), **headers)
            return
    handler.answer(404, b"{}")


def put(net: Network, handler: Handler, path: str, body: bytes) -> None:
    """Take a content, or a piece of one."""
    oid, _, piece = path.lstrip("/").partition("/")
    if net.store.rate is not None:
        time.sleep(len(body) / net.store.rate)
    with net.store.lock:
        net.store.sent[oid] += len(body)
        if piece:
            net.store.pieces[f"{oid}/{piece}"] = body
        else:
            _keep(net, oid, body)
    handler.answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')


def _keep(net: Network, oid: str, content: bytes) -> None:
    assert hashlib.sha256(content).hexdigest() == oid, "other bytes than were announced"
    net.store.contents[oid] = content


def _create(net: Network, body: bytes) -> Any:
    said = json.loads(body)
    if said["organization"] != OWNER:
        return 403, {"error": "You don't have the rights to create a model under this namespace"}, {}
    name = f"{said['organization']}/{said['name']}"
    net.store.repositories[name] = Repository(private=said.get("visibility") == "private" or bool(said.get("private")))
    return {"url": f"{net.hub.url}/{name}"}


def delete(net: Network, handler: Handler, path: str) -> None:
    """Answer a DELETE: only branches go."""
    found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path)
    gone = net.store.repositories.pop(f"{found[1]}@{found[2]}", None) if found else None
    handler.answer(200 if gone else 404, b"{}")


def _branch(net: Network, _body: bytes, name: str, branch: str) -> Any:
    if f"{name}@{branch}" in net.store.repositories:
        return 409, {"error": "Reference already exists"}, {}
    net.store.repositories[f"{name}@{branch}"] = copy.deepcopy(net.store.repositories[name])
    return {}


def _preupload(net: Network, body: bytes, name: str, branch: str) -> Any:
    if not name.startswith(f"{OWNER}/"):
        return 403, {"error": "Forbidden: you must have write access"}, {}
    repository, files = net.store.of(name, branch), []
    assert repository is not None
    for file in json.loads(body)["files"]:
        oid = repository.large.get(file["path"])
        if file["path"] in repository.small:
            content = repository.small[file["path"]]
            oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        is_large = b"\0" in base64.b64decode(file["sample"])
        files.append({"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False})
        files[-1] |= {"oid": oid} if oid else {}
    return {"files": files}


def _batch(net: Network, body: bytes, name: str) -> Any:
    objects = []
    for asked in json.loads(body)["objects"]:
        oid, size = asked["oid"], asked["size"]
        actions: dict[str, Any] = {}
        if oid not in net.store.contents:
            upload: dict[str, Any] = {"href": f"{net.storage.url}/{oid}"}
            if size > net.store.chunk:
                count = -(-size // net.store.chunk)
                pieces = {str(n): f"{net.storage.url}/{oid}/{n}" for n in range(1, count + 1)}
                upload = {
                    "href": f"{net.hub.url}/api/complete/{oid}",
                    "header": {"chunk_size": str(net.store.chunk)} | pieces,
                }
            verify = f"{net.hub.url}/{name}.git/info/lfs/objects/verify"
            actions = {"actions": {"upload": upload, "verify": {"href": verify}}}
        objects.append({"oid": oid, "size": size} | actions)
    return {"transfer": "basic", "objects": objects}


def _complete(net: Network, body: bytes, oid: str) -> Any:
    parts = sorted(json.loads(body)["parts"], key=lambda part: part["partNumber"])
    pieces = [net.store.pieces.pop(f"{oid}/{part['partNumber']}") for part in parts]
    assert [part["etag"].strip('"') for part in parts] == [hashlib.md5(piece).hexdigest() for piece in pieces]
    _keep(net, oid, b"".join(pieces))
    return {}


def _verify(net: Network, body: bytes, _name: str) -> Any:
    said = json.loads(body)
    return (200 if len(net.store.contents.get(said["oid"], b"")) == said["size"] else 400), {}, {}


def _commit(net: Network, body: bytes, name: str, branch: str) -> Any:
    repository = net.store.of(name, branch)
    assert repository is not None
    header, *operations = [json.loads(line) for line in body.splitlines()]
    if header["value"].get("parentCommit") not in (None, repository.head):
        return 412, {"error": "The branch has moved"}, {}
    names = [operation["value"]["path"] for operation in operations]
    for operation in operations:
        value = operation["value"]
        if operation["key"] == "lfsFile":
            if len(net.store.contents.get(value["oid"], b"")) != value["size"]:
                return 400, {"error": f"lfs object {value['oid']} is missing"}, {}
            repository.large[value["path"]] = value["oid"]
        else:
            repository.small[value["path"]] = base64.b64decode(value["content"])
    repository.commits.append(names)
    url = f"{net.hub.url}/{name}/commit/{repository.head}"
    return {"commitUrl": url, "commitOid": repository.head, "hookOutput": ""}


_POSTS: dict[str, Any] = {
    r"/api/repos/create": _create,
    r"/api/validate-yaml": lambda _net, _body: {"errors": [], "warnings": []},
    r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)": _preupload,
    r"/api/models/([^/]+/[^/]+)/commit/([^/]+)": _commit,
    r"/api/models/([^/]+/[^/]+)/branch/([^/]+)": _branch,
    r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": _batch,
    r"/([^/]+/[^/]+)\.git/info/lfs/objects/verify": _verify,
    r"/api/complete/([0-9a-f]{64})": _complete,
}
