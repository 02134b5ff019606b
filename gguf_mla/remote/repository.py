"""What a repository holds at one commit: by huggingface_hub, which knows tokens, endpoints, offline mode and the cache.

huggingface_hub is an extra; it is imported when the first id of the hub is used.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import GgufMlaError, InputError, MachineError
from gguf_mla.remote.troubles import FIRST_PATIENCE, Patience, Trouble, asked_seconds
from gguf_mla.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TIMEOUT = 20.0  # seconds for a question about a repository
LIBRARY = "gguf-mla"


@dataclass(frozen=True)
class Entry:
    """A file of a repository.

    size    bytes
    etag    what the hub names its content by: `sha256` where that is set, or the SHA-1 of git's blob
    sha256  of what is stored as a large file, None for others
    """

    size: int
    etag: str
    sha256: str | None


class Repository:
    """The files of a repository at a commit.

    commit   what the revision named when it was opened
    files    by name; empty where `offline` is set
    offline  in offline mode, the directory of the hub's cache that holds this commit
    """

    def __init__(self, name: str, revision: str) -> None:
        self.name, self.hub = (
            name,
            hub_library(
                "there is no such directory here, and to read it from the hub", name, "Check the path, or install it"
            ),
        )
        self.files: Mapping[str, Entry] = {}
        self.offline: Path | None = None
        if self.hub.constants.is_offline_mode():
            self.offline = self._cached_snapshot(revision)
            self.commit = self.offline.name
            return
        found = self._asked(lambda: self._info(revision))
        self.commit = str(found.sha)
        self.files = {entry.rfilename: self._entry(entry) for entry in found.siblings or ()}

    @property
    def endpoint(self) -> str:
        """The hub's address, without a slash at its end."""
        return str(self.hub.constants.ENDPOINT).rstrip("/")

    def url(self, name: str) -> str:
        """Return the address of a file at this commit."""
        return str(self.hub.hf_hub_url(self.name, name, revision=self.commit, endpoint=self.endpoint))

    def called(self, name: str) -> str:
        """Return how errors name a file, as its path does."""
        return f"hf://{self.name}@{self.commit}/{name}"

    def headers(self, *, token: bool) -> dict[str, str]:
        """Return what every request says of us; the user's token only where it is asked for."""
        told = self.hub.utils.build_hf_headers(
            token=None if token else False, library_name=LIBRARY, library_version=__version__
        )
        return dict(told)

    def cached(self, name: str) -> Path | None:
        """Return where the hub's cache holds a file of this commit, whole; None where it does not."""
        found = self.hub.try_to_load_from_cache(self.name, name, revision=self.commit)
        if not isinstance(found, str):
            return None
        path = Path(found)
        return path if path.is_file() and path.stat().st_size == self.files[name].size else None

    def downloaded(self, name: str) -> Path:
        """Return where the hub's cache holds a file, which is downloaded if it does not."""
        if self.offline is not None:
            return self.offline / name
        if name not in self.files:
            raise self.missing(name)
        if found := self.cached(name):
            return found
        return Path(self._asked(lambda: self.hub.hf_hub_download(self.name, name, revision=self.commit)))

    def missing(self, name: str) -> InputError:
        """Return the error for a file that the repository does not have."""
        return InputError(
            "there is no such file in the repository",
            file=self.called(name),
            found=f"{len(self.files)} files at commit {self.commit[:12]}",
            remedy="Compare with the list of files on its page",
        )

    def _info(self, revision: str) -> Any:
        api = self.hub.HfApi(library_name=LIBRARY, library_version=__version__)
        return api.model_info(self.name, revision=revision, files_metadata=True, timeout=TIMEOUT)

    def _entry(self, entry: Any) -> Entry:
        sha256 = entry.lfs.sha256 if entry.lfs else None
        return Entry(int(entry.size or 0), str(sha256 or entry.blob_id), sha256)

    def _cached_snapshot(self, revision: str) -> Path:
        try:
            return Path(self.hub.snapshot_download(self.name, revision=revision, local_files_only=True))
        except self.hub.errors.IncompleteSnapshotError as error:
            return Path(error.snapshot_path)
        except self.hub.errors.LocalEntryNotFoundError:
            raise InputError(
                "is not in the hub's cache, and the hub may not be asked (HF_HUB_OFFLINE)",
                file=f"hf://{self.name}",
                remedy="Unset HF_HUB_OFFLINE, or name a directory",
            ) from None

    def _asked(self, question: Callable[[], Any]) -> Any:
        """Return an answer of huggingface_hub, asked again where that may help; a sentence for any error."""
        patience = Patience(f"hf://{self.name}", FIRST_PATIENCE)
        while True:
            try:
                return question()
            except GgufMlaError:
                raise
            except (OSError, ValueError, http().HTTPError, http().InvalidURL) as error:
                patience.wait(self._trouble(error))

    def _trouble(self, error: Exception) -> Trouble:
        """Return what failed as something that may pass; raise what will not."""
        errors, name = self.hub.errors, f"hf://{self.name}"
        if isinstance(error, errors.GatedRepoError):
            remedy = "Accept its terms on its page, and give a token that may read it: hf auth login, or HF_TOKEN"
            raise InputError("is a gated repository, which this token may not read", file=name, remedy=remedy)
        if isinstance(error, errors.RevisionNotFoundError):
            raise InputError("the repository has no such revision", file=name, remedy="Check what follows @")
        if isinstance(error, errors.RepositoryNotFoundError):
            raise InputError(
                "there is no such directory here and no such repository on the hub, or this token may not read it",
                file=name,
                remedy="Check the name; a private repository needs a token: hf auth login, or HF_TOKEN",
            )
        response: Any = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if status is not None and status not in (408, 429) and status < 500:
            raise InputError(f"the hub refuses to answer (status {status})", file=name)
        if status is not None:
            return Trouble(f"the hub answers with status {status}", asked=asked_seconds(response.headers))
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            raise MachineError(f"the download failed ({error.strerror})", file=name)
        return Trouble(f"the hub cannot be reached ({type(error).__name__}: {error})")


@functools.cache
def open_repository(name: str, revision: str) -> Repository:
    """Return a repository at a revision, which is resolved once per process; InputError where there is none."""
    repository = Repository(name, revision)
    if revision != repository.commit:
        _resolved[name, repository.commit] = repository
    return repository


_resolved: dict[tuple[str, str], Repository] = {}


def at_commit(name: str, commit: str) -> Repository:
    """Return a repository that was opened before, by its commit."""
    return _resolved.get((name, commit)) or open_repository(name, commit)


@functools.cache
def http() -> Any:
    """Return the HTTP library that huggingface_hub stands on: httpx2, or httpx before its version 2."""
    try:
        return importlib.import_module("httpx2")
    except ImportError:
        return importlib.import_module("httpx")


def hub_library(what: str, name: str, remedy: str) -> Any:
    """Return huggingface_hub; InputError where it is not installed, which says what it is wanted for."""
    try:
        hub = importlib.import_module("huggingface_hub")
        http()
    except ImportError as error:
        raise InputError(
            f"{what} takes huggingface_hub ({error})",
            file=name,
            remedy=f"{remedy}: pip install huggingface_hub",
        ) from None
    for part in ("constants", "errors", "lfs", "utils"):
        importlib.import_module(f"huggingface_hub.{part}")
    return hub
