"""What the hub says a downloaded file has to be: the SHA-256 that its cache keeps.

In a cache, snapshots/REVISION/FILE is a link to blobs/SHA256. In a directory that was downloaded with --local-dir,
.cache/huggingface/download/FILE.metadata holds three lines: revision, SHA-256, time. Small text files have a shorter
digest of another kind in both places and are left out.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.files.bounds import NOTE_BYTES
from gguf_mla.files.checksums import sha256
from gguf_mla.files.input import read_small
from gguf_mla.files.readable import Elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import PurePath

SNAPSHOT = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")
DOT = "___"  # ModelScope's cache writes it for a dot
COMMIT = re.compile(r"[0-9a-f]{40}|v?[0-9]{1,9}")  # a directory named so says nothing of the model
NAMED = 5  # files that an error names
THREADS = 4  # files that are read at a time
_SHA256 = re.compile(r"[0-9a-f]{64}")


def expected_sha256(path: Path) -> str | None:
    """Return the SHA-256 the hub states for a file, None if nothing here says it."""
    target = path.resolve()
    if target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
        return target.name
    note = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    try:
        lines = read_small(note, NOTE_BYTES).decode("utf-8").splitlines()
    except (InputError, UnicodeDecodeError):
        return None
    return lines[1] if len(lines) > 1 and _SHA256.fullmatch(lines[1]) else None


def repository(path: PurePath) -> tuple[str, str] | None:
    """Return owner and name of the repository that a folder is, or a snapshot of in the cache; None for others.

    A snapshot is models--OWNER--NAME/snapshots/COMMIT, a branch's or tag's name in the place of the commit.
    """
    if isinstance(path, Elsewhere):
        return path.repository
    where = Path(path).absolute()
    found = SNAPSHOT.fullmatch(where.parent.parent.name) if where.parent.name == "snapshots" else None
    return (found["owner"], found["name"]) if found else None


def directory(path: PurePath) -> Path:
    """Return what a checkpoint's directory is called: of a repository by its name, which says more than a commit."""
    found = repository(path)
    return Path("/", *found) if found else Path(path).absolute()


def model_name(directory: PurePath) -> str:
    """Return what a model in a directory is called: the directory's name, or in a cache that of the repository.

    A commit or a bare number, as caches have them, is passed over for the directory that it lies in.
    """
    cached = repository(directory) or repository(Path(directory).resolve())
    if cached:
        return cached[1]
    path = Path(directory).resolve()
    named = path.parent if COMMIT.fullmatch(path.name) and path.parent.name else path
    return named.name.replace(DOT, ".")


def verify(
    paths: Sequence[Path], progress: Callable[[int], object] = lambda _: None, *, unstated: bool = False
) -> None:
    """Compare every file with what the hub states; InputError for one that differs or, without `unstated`, has nothing.

    Nor may all of them have nothing.
    """
    expected = {path: digest for path in paths if (digest := expected_sha256(path))}
    if not expected:
        raise InputError(
            "--verify-source has nothing to compare with: these files do not lie in a cache of the hub",
            file=paths[0].parent,
            expected="links into blobs/, or .cache/huggingface/ as `hf download --local-dir` leaves it",
        )
    unknown = [path.name for path in paths if path not in expected]
    if unknown and not unstated:
        raise InputError(
            f"the hub states no SHA-256 for {_listed(unknown)}",
            file=paths[0].parent,
            expected="a SHA-256 for every input",
            remedy="Download them again, or give --allow-unverified to compare only the others",
        )

    def check(path: Path) -> None:
        found = sha256(path, progress)
        if found != expected[path]:
            raise InputError(
                "is not the file that the hub has",
                file=path,
                expected=f"SHA-256 {expected[path]}",
                found=found,
                remedy="Download it again",
            )

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(check, expected):
            pass


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
