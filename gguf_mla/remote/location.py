"""Ids of the hub on the command line: told from paths, and as paths that errors, names and parts are made from.

OWNER/NAME                   where nothing of that name is on this machine
OWNER/NAME:TAG               of its GGUF files the model whose name has TAG in it (UD-Q2_K_XL), or a file by name
hf://OWNER/NAME@REVISION     with a branch, a tag or a commit
hf://OWNER/NAME/FILE         one file
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gguf_mla.errors import InputError
from gguf_mla.files.readable import Elsewhere

if TYPE_CHECKING:
    from gguf_mla.files.readable import AnyPath, Folder, Readable, Tape
    from gguf_mla.remote.repository import Repository

SCHEME = "hf://"
FILES = (".gguf", ".dat")  # how no repository is called
_WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
_ID = re.compile(
    rf"(?P<id>{_WORD}/{_WORD})(?:@(?P<revision>refs/(?:pr|convert)/[^/:@]+|[^/:@]+))?"
    r"(?:/(?P<file>[^:]+)|:(?P<tag>[^:]+))?"
)


class HubId(NamedTuple):
    """What an id says: a repository, its revision, a file of it, or a tag that picks files."""

    repository: str
    revision: str
    file: str
    tag: str


def parse(text: str) -> HubId | None:
    """Return what a text says as an id; None for a text that is a path. InputError for a damaged id."""
    written = text.startswith(SCHEME)
    found = _ID.fullmatch(text.removeprefix(SCHEME))
    if not written and (found is None or found["file"] or found["id"].endswith(FILES)):
        return None  # DIRECTORY/x.gguf is a file of this machine, there or not
    if not written and (Path(text).exists() or Path(text.partition(":")[0]).exists()):
        return None
    if found is None or {".", ".."} & set((found["file"] or "x").split("/")):
        raise InputError(
            "is not the id of a repository",
            file=text,
            expected="hf://OWNER/NAME, hf://OWNER/NAME@REVISION, hf://OWNER/NAME/FILE or OWNER/NAME:TAG",
        )
    return HubId(found["id"], found["revision"] or "main", found["file"] or "", found["tag"] or "")


def owner_and_name(text: str) -> str:
    """Return OWNER/NAME of a repository that is written to, with or without hf://; InputError for anything else."""
    found = _ID.fullmatch(text.removeprefix(SCHEME))
    if found is None or found["id"] != found[0]:
        raise InputError("is not the id of a repository", file=text, expected="OWNER/NAME")
    return found["id"]


def checkpoint(text: str) -> AnyPath:
    """Return where a checkpoint lies, by its directory or id."""
    found = parse(text)
    if found is None:
        return Path(text)
    if found.file or found.tag:
        raise InputError("names a file, and a checkpoint is a whole repository", file=text, expected="OWNER/NAME")
    return _root(found)


def gguf(text: str) -> AnyPath:
    """Return where a GGUF file lies, or the first part of a split one; InputError where an id leaves a choice."""
    from gguf_mla.remote import selection  # noqa: PLC0415 - a path needs no hub

    found = parse(text)
    if found is None:
        return Path(text)
    root = _root(found)
    return root / (found.file or selection.gguf(_names(root), found.tag, text))


def either(text: str) -> AnyPath:
    """Return where a checkpoint or a GGUF file lies: a repository with safetensors files is a checkpoint."""
    found = parse(text)
    if found is None:
        return Path(text)
    root = _root(found)
    whole = not found.file and not found.tag and any(name.endswith(".safetensors") for name in _names(root))
    return root if whole else gguf(text)


def small(text: str) -> Path:
    """Return where a small file lies on this machine, and download one of the hub into its cache before."""
    found = parse(text)
    if found is None:
        return Path(text)
    named = found.file or found.tag
    if not named:
        raise InputError("names a repository, and a file is needed", file=text, expected="hf://OWNER/NAME/FILE")
    from gguf_mla.remote.repository import open_repository  # noqa: PLC0415 - a path needs no hub

    return open_repository(found.repository, found.revision).downloaded(named)


def types(text: str) -> AnyPath:
    """Return where a file lies that says which type each tensor gets: a GGUF file, or a .recipe of lines."""
    return small(text) if text.endswith(".recipe") else gguf(text)


def _root(found: HubId) -> Path | HubPath:
    """Return the folder of a repository at the commit that its revision names now; offline, that in the cache."""
    from gguf_mla.remote.repository import open_repository  # noqa: PLC0415 - a path needs no hub

    repository = open_repository(found.repository, found.revision)
    return repository.offline or HubPath(f"{found.repository}@{repository.commit}")


def _names(root: Path | HubPath) -> list[str]:
    if isinstance(root, Path):
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return root.everything()


class HubPath(Elsewhere):
    """OWNER/NAME@COMMIT and a file or folder in it; as text it begins with hf://."""

    __slots__ = ()

    def __str__(self) -> str:
        return SCHEME + "/".join(self.parts)

    @property
    def tape(self) -> Tape:
        """The tape of this process: all files share connections and memory."""
        from gguf_mla.remote.tape import TAPE  # noqa: PLC0415 - paths are made before anything is read

        return TAPE

    @property
    def inside(self) -> str:
        """The path in the repository, "" for all of it."""
        return "/".join(self.parts[2:])

    @property
    def repository(self) -> tuple[str, str]:
        """Owner and name."""
        return self.parts[0], self.parts[1].partition("@")[0]

    def everything(self) -> list[str]:
        """Return the names of all files of the repository."""
        return sorted(self._repository().files)

    def is_dir(self) -> bool:
        """Whether there is a folder."""
        return not self.inside or any(name.startswith(self.inside + "/") for name in self._repository().files)

    def exists(self) -> bool:
        """Whether there is anything."""
        return self.inside in self._repository().files or self.is_dir()

    def opened(self) -> Readable:
        """Open the file, from the hub's cache where that has it."""
        from gguf_mla.remote.files import open_file  # noqa: PLC0415 - paths are made before anything is read

        return open_file(self, self._repository())

    def folder(self) -> Folder:
        """Open the folder."""
        from gguf_mla.remote.files import HubFolder  # noqa: PLC0415 - paths are made before anything is read

        return HubFolder(self, self._repository())

    def vouch(self) -> None:
        """Have `check` read the whole file, if that is what it takes to compare it."""
        from gguf_mla.remote.files import vouch  # noqa: PLC0415 - paths are made before anything is read

        vouch(self.opened())

    def check(self) -> None:
        """Raise InputError unless what was read of the file has the hub's digest, as far as that can be told."""
        from gguf_mla.remote.files import check  # noqa: PLC0415 - paths are made before anything is read

        check(self.opened())

    def _repository(self) -> Repository:
        from gguf_mla.remote.repository import at_commit  # noqa: PLC0415 - paths are made before anything is read

        name, _, commit = self.parts[1].partition("@")
        return at_commit(f"{self.parts[0]}/{name}", commit)
