"""Notes on a branch of a repository of the hub, which goes when the work is finished: its main branch has none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_mla.remote.repository import TIMEOUT

if TYPE_CHECKING:
    from gguf_mla.remote.upload import Upload


class Branch:
    """Small files in a folder of a branch (gguf_mla.remote.destination.Shelf), about the output called `name`."""

    def __init__(self, upload: Upload, name: str) -> None:
        self._upload, self._folder = upload, f"{name}.work"
        self._branch = "gguf-mla-" + re.sub("[^A-Za-z0-9._-]", "-", name)

    def names(self) -> list[str]:
        """Return what is there; MachineError when that cannot be known."""
        return [*self._seen()[1]]

    def read(self, name: str) -> bytes | None:
        """Return what a file holds, None where there is none."""
        commit, names = self._seen()
        if name not in names:
            return None
        upload, path = self._upload, f"{self._folder}/{name}"
        found = upload.asked(lambda: upload.hub.hf_hub_download(upload.repository, path, revision=commit))
        return Path(found).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Write a file, which is there whole or not at all."""
        upload = self._upload
        operation = upload.hub.CommitOperationAdd(path_in_repo=f"{self._folder}/{name}", path_or_fileobj=content)

        def commit() -> None:
            upload.api.create_branch(upload.repository, branch=self._branch, exist_ok=True)
            upload.api.create_commit(
                upload.repository, [operation], commit_message=f"Note {name}", revision=self._branch
            )

        upload.asked(commit)

    def remove(self) -> None:
        """Remove all of them, with their branch."""
        upload = self._upload
        if self._seen()[0]:
            upload.asked(lambda: upload.api.delete_branch(upload.repository, branch=self._branch))

    def _seen(self) -> tuple[str, list[str]]:
        """Return the branch's commit, and the notes that are there; "" and none without the branch."""
        upload = self._upload

        def info() -> Any:
            try:
                return upload.api.model_info(upload.repository, revision=self._branch, timeout=TIMEOUT)
            except upload.hub.errors.RevisionNotFoundError:
                return None

        found = upload.asked(info)
        if found is None:
            return "", []
        names = [entry.rfilename for entry in found.siblings or ()]
        inside = f"{self._folder}/"
        return str(found.sha), [name.removeprefix(inside) for name in names if name.startswith(inside)]
