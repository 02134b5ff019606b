"""An object store, or any other place that fsspec knows, for finished files: each is there whole or not at all.

A model is complete when NAME.gguf.sha256 is there, which is written last. Where an object appears only when all of it
was sent, files get their names at once; elsewhere they are written under another name first.
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import GgufMlaError, InputError, MachineError
from gguf_mla.remote.destination import Destination
from gguf_mla.remote.outgoing import BLOCK, Outgoing, StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from gguf_mla.remote.destination import Describe, Receipt

STORES = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss"))  # that show whole objects only
MARKS = ("ETag", "etag", "md5Hash", "crc32c", "content_md5")  # what stores call what changes with the content
PIECE = 64 << 20  # bytes that a store is sent at a time
SMALL = 1 << 25  # bytes of the largest note
INSTALL = "pip install 'gguf-mla[cloud]', and what fsspec needs for this store: s3fs, gcsfs, adlfs"


class Store(Destination):
    """A folder at a URL as a destination; an object that is there already is replaced only with `overwrite`."""

    def __init__(
        self,
        url: str,
        names: Mapping[Path, str],
        describe: Describe,
        *,
        keeps: bool,
        overwrite: bool,
        ends: Sequence[str] = (),
    ) -> None:
        super().__init__(url.rstrip("/"), names, describe, keeps=keeps)
        self._overwrite, self._ends = overwrite, ends
        try:
            import fsspec  # noqa: PLC0415 - it is an extra

            self._plain: Any = fsspec.AbstractFileSystem
            self._fs, self._root = fsspec.core.url_to_fs(self.called)
        except (ImportError, ValueError) as error:
            raise InputError(f"cannot be written ({error})", file=url, remedy=INSTALL) from None
        protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else {*self._fs.protocol}
        self._shows_whole = not protocols.isdisjoint(STORES)

    def open(self, *, create: bool) -> None:
        """Raise InputError where the store does not answer, or a complete model of that name is there."""
        del create  # a store has no empty folders
        there = self._asked(lambda: [name for name in self._ends if self._info(name)], InputError)
        if there and not self._overwrite and not self.shelf().names():
            remedy = "Choose another place, or give --overwrite"
            raise InputError("is there already", file=f"{self.called}/{there[0]}", remedy=remedy)

    def has(self, receipts: Mapping[str, Receipt]) -> set[str]:
        """Return which files are there with the content that their receipts say.

        What the store itself says of a content is believed; where it says nothing, or another thing, it is read.
        """
        found: set[str] = self._asked(
            lambda: {name for name, receipt in receipts.items() if self._is_there(name, receipt)}
        )
        return found

    def take(self, path: Path, built: Path) -> dict[str, Any]:
        """Send a file, unless it is there, and return what `has` needs; MachineError where it fails."""
        name = self.name(path)
        try:
            found, receipt = self._hashed(name, built)
            if there := self._asked(lambda: self._info(name)):
                if self._asked(lambda: self._is_there(name, receipt)):
                    return receipt | {"mark": _mark(there)}
                if not self._overwrite:
                    remedy = "Remove it, choose another place, or give --overwrite"
                    raise MachineError(
                        "is there already, and not this file", file=f"{self.called}/{name}", remedy=remedy
                    )
            self._journey.begin(name, found.size, sending=True)
            with Outgoing(built, self._journey) as file:
                self._asked(lambda: self._send(name, file))
                self._count(found, file.sent)
            info = self._asked(lambda: self._info(name)) or {}
            if info.get("size") != found.size:
                what = "is not as large in the store as it was sent"
                raise MachineError(what, file=f"{self.called}/{name}", expected=found.size, found=info.get("size"))
            return receipt | {"mark": _mark(info)}
        finally:
            self._journey.name = ""

    def publish(self, receipts: Mapping[str, Receipt]) -> None:
        """Write the notes with the SHA-256 of all files: with them a model is complete."""
        self._sum_up(receipts)
        for name, text in self._describe(receipts, lambda _: None).items():
            self.put(name, text.encode())
            self.published.url = f"{self.called}/{name}"

    def shelf(self) -> Folder:
        """Return where those leave notes who work on the same outputs."""
        return Folder(self, f"{self.first}.work")

    def listed(self, folder: str) -> list[str]:
        """Return the names of what is in a folder; MachineError when the store fails."""

        def listed() -> list[str]:
            self._fs.invalidate_cache()
            try:
                return [str(path).rpartition("/")[2] for path in self._fs.ls(self._path(folder), detail=False)]
            except FileNotFoundError:
                return []

        return [str(name) for name in self._asked(listed)]

    def small(self, name: str) -> bytes | None:
        """Return what a small object holds, None where there is none; MachineError when the store fails."""

        def content() -> bytes | None:
            info = self._info(name)
            if info is None or int(info["size"]) > SMALL:
                return None
            return bytes(self._fs.cat_file(self._path(name)))

        found: bytes | None = self._asked(content)
        return found

    def put(self, name: str, content: bytes) -> None:
        """Write a small object, which is there whole or not at all; MachineError when the store fails."""
        self._asked(lambda: self._put(name, content))

    def drop(self, folder: str) -> None:
        """Remove a folder with what is in it; MachineError when the store fails."""
        for name in self.listed(folder):
            self._asked(partial(self._fs.rm_file, self._path(f"{folder}/{name}")))
        with contextlib.suppress(Exception):  # where folders are things of their own
            self._fs.rmdir(self._path(folder))

    def _is_there(self, name: str, receipt: Receipt) -> bool:
        info = self._info(name)
        if info is None or info.get("size") != receipt["size"]:
            return False
        mark = _mark(info)
        return (mark is not None and mark == receipt.get("mark")) or self._sha256(name) == receipt["sha256"]

    def _sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        with self._fs.open(self._path(name), "rb") as file:
            while data := file.read(BLOCK):
                self._journey.check()
                digest.update(data)
        return digest.hexdigest()

    def _info(self, name: str) -> Mapping[str, Any] | None:
        self._fs.invalidate_cache()  # others write, too
        try:
            found: Mapping[str, Any] = self._fs.info(self._path(name))
        except FileNotFoundError:
            return None
        return found

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _send(self, name: str, source: Outgoing) -> None:
        source.seek(0)
        with self._appearing(name) as target:
            while data := source.read(BLOCK):
                target.write(data)

    def _put(self, name: str, content: bytes) -> None:
        with self._appearing(name) as target:
            target.write(content)

    @contextlib.contextmanager
    def _appearing(self, name: str) -> Iterator[Any]:
        """Open an object that is there when the context ends well, and not at all otherwise."""
        path = self._path(name)
        if self._shows_whole:
            file = self._fs.open(path, "wb", autocommit=False, block_size=PIECE)
            try:
                yield file
            except BaseException:
                file.discard()
                raise
            file.close()
            file.commit()
            return
        draft = f"{path}.{uuid.uuid4().hex}"
        self._fs.makedirs(self._fs._parent(path), exist_ok=True)  # noqa: SLF001 - it has no other name
        try:
            with self._fs.open(draft, "wb") as file:
                yield file
            self._rename(draft, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(draft)
            raise

    def _rename(self, path: str, final: str) -> None:
        """Give an object its name: by `mv` where the store has one; fsspec's own would take brackets for a pattern."""
        if type(self._fs).mv is not self._plain.mv:
            self._fs.mv(path, final)
        else:
            self._fs.cp_file(path, final)
            self._fs.rm_file(path)

    def _asked(self, question: Callable[[], Any], kind: type[GgufMlaError] = MachineError) -> Any:
        """Return what the store answers; a sentence for any error. What is worth it, its own library asks again."""
        try:
            return question()
        except (GgufMlaError, StoppedError):
            raise
        except Exception as error:  # every store has errors of its own
            said = (str(error).splitlines() or [""])[0]
            raise kind(f"the store fails ({type(error).__name__}: {said})", file=self.called) from None


class Folder:
    """Small files in a folder of a store (gguf_mla.remote.destination.Shelf)."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name

    def names(self) -> list[str]:
        """Return what is there; MachineError when that cannot be known."""
        return self._store.listed(self._name)

    def read(self, name: str) -> bytes | None:
        """Return what a file holds, None where there is none."""
        return self._store.small(f"{self._name}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Write a file, which is there whole or not at all."""
        self._store.put(f"{self._name}/{name}", content)

    def remove(self) -> None:
        """Remove all of them."""
        self._store.drop(self._name)


def _mark(info: Mapping[str, Any]) -> str | None:
    """Return what a store says of a content, None where it says nothing."""
    return next((str(info[name]) for name in MARKS if info.get(name)), None)
