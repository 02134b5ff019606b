"""A repository of the hub as a place for finished files: each is sent when it is complete, one commit shows all.

A file that was sent and not committed is seen by nobody. The hub knows files by their SHA-256, so what it has already
is not sent again, whoever sent it. huggingface_hub speaks the protocol; what it is handed are file objects, so it
sends by plain HTTP and not by xet, whatever HF_HUB_DISABLE_XET says.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import GgufMlaError, InputError, MachineError
from gguf_mla.remote import refusals
from gguf_mla.remote.branch import Branch
from gguf_mla.remote.destination import Destination
from gguf_mla.remote.location import SCHEME, owner_and_name
from gguf_mla.remote.outgoing import Absent, Outgoing, StoppedError
from gguf_mla.remote.repository import LIBRARY, TIMEOUT, http, hub_library
from gguf_mla.remote.troubles import FIRST_PATIENCE, Patience
from gguf_mla.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from gguf_mla.remote.destination import Describe

BATCH = 256  # files that the hub is asked about at a time


class Upload(Destination):
    """A repository OWNER/NAME as a destination; `private`: a new one is to be so."""

    def __init__(
        self, repository: str, names: Mapping[Path, str], describe: Describe, *, private: bool, keeps: bool
    ) -> None:
        self.repository, self._private = owner_and_name(repository), private
        super().__init__(SCHEME + self.repository, names, describe, keeps=keeps)
        self.published.repository = self.repository
        self.hub = hub_library("an upload", self.called, "Install it")
        self.api = self.hub.HfApi(library_name=LIBRARY, library_version=__version__)
        self._error: type[GgufMlaError] = InputError  # nothing has been made yet that could be kept

    def open(self, *, create: bool) -> None:
        """Raise InputError where nothing can be uploaded; `create` the repository if it is missing."""
        if self.hub.constants.is_offline_mode():
            raise InputError("the hub may not be asked (HF_HUB_OFFLINE)", file=self.called, remedy="Unset it to upload")
        if self.hub.get_token() is None:
            raise InputError("an upload takes a token that may write", file=self.called, remedy=refusals.TOKEN)
        found = self.asked(self._found, FIRST_PATIENCE)
        if found is None and create:
            self.asked(
                lambda: self.api.create_repo(self.repository, private=self._private or None, exist_ok=True),
                FIRST_PATIENCE,
            )
        if found is not None and self._private and not found.private:
            what, remedy = "is there, and is public", "Leave --private out, or name another repository"
            raise InputError(what, file=self.called, remedy=remedy)
        if found is not None or create:
            self.asked(self._may_write, FIRST_PATIENCE)
        self._error = MachineError

    def has(self, receipts: Mapping[str, Mapping[str, Any]]) -> set[str]:
        """Return which files of an earlier run the hub still has, committed or not."""
        there: set[str] = set()
        names = [*receipts]
        for start in range(0, len(names), BATCH):
            batch = {receipts[name]["sha256"]: name for name in names[start : start + BATCH]}
            infos = [self._info(receipts[name]) for name in batch.values()]
            for entry in self.asked(functools.partial(self._looked_up, infos)):
                if "actions" not in entry and entry["oid"] in batch:
                    there.add(batch[entry["oid"]])
        return there

    def take(self, path: Path, built: Path) -> dict[str, Any]:
        """Send a file, unless the hub has it, and return what `has` and `publish` need; MachineError where it fails."""
        name = self.name(path)
        try:
            found, receipt = self._hashed(name, built)
            self._journey.begin(name, found.size, sending=True)
            with Outgoing(built, self._journey) as file:
                self.asked(lambda: self._send(name, receipt, file), reached=lambda: file.sent)
                self._count(found, file.sent)
        finally:
            self._journey.name = ""
        return receipt

    def publish(self, receipts: Mapping[str, Mapping[str, Any]]) -> None:
        """Commit all files, and what describes them, at once; MachineError where that fails, which loses nothing."""
        self._sum_up(receipts)
        made = self.asked(lambda: self._commit(receipts))
        self.published.commit, self.published.url = str(made.oid), str(made.commit_url)

    def shelf(self) -> Branch:
        """Return where those leave notes who work on the same outputs."""
        return Branch(self, self.first)

    def _found(self) -> Any:
        try:
            return self.api.model_info(self.repository, timeout=TIMEOUT)
        except self.hub.errors.RepositoryNotFoundError as error:
            if refusals.status(error) == 401:  # this says that the token is none
                raise
            return None

    def _may_write(self) -> None:
        """Ask how a small file would be stored, which only those are told who may write."""
        self.api.preupload_lfs_files(self.repository, additions=[self._small("README.md", "#")])

    def _looked_up(self, infos: list[Any]) -> list[dict[str, Any]]:
        """Return what the hub says of contents: `actions` where it wants them to be sent."""
        ask = self.hub.lfs.post_lfs_batch_info
        entries = ask(
            upload_infos=infos, token=None, repo_type="model", repo_id=self.repository, revision="main",
            endpoint=self.api.endpoint,
        )[0]  # fmt: skip
        return [*entries]

    def _send(self, name: str, receipt: Mapping[str, Any], file: Outgoing) -> None:
        file.seek(0)  # the library goes on from where an attempt that failed has left it
        operation = self._large(name, receipt, file)
        self.api.preupload_lfs_files(self.repository, additions=[operation], num_threads=1)
        if operation.path_or_fileobj is file:
            what = "would not be stored as a large file there"
            raise MachineError(what, file=f"{self.called}/{name}", remedy="Look at its .gitattributes and .gitignore")

    def _commit(self, receipts: Mapping[str, Mapping[str, Any]]) -> Any:
        head = self.api.model_info(self.repository, timeout=TIMEOUT)
        there = {entry.rfilename for entry in head.siblings or ()}

        def read(name: str) -> str | None:
            if name not in there:
                return None
            path = self.hub.hf_hub_download(self.repository, name, revision=head.sha)
            with open(path, "rb") as file:  # noqa: PTH123 - a cache's file
                return str(file.read(), "utf-8", "surrogateescape")  # every byte goes back as it came

        small = self._describe(receipts, read)
        operations = [self._large(name, receipt, Absent()) for name, receipt in receipts.items()]
        operations += [self._small(name, text) for name, text in small.items()]
        title = f"Add {next(iter(receipts))}" + (f" and {len(receipts) - 1} more" if len(receipts) > 1 else "")
        return self.api.create_commit(
            self.repository, operations, commit_message=f"{title} (gguf-mla {__version__})", parent_commit=head.sha
        )

    def _small(self, name: str, text: str) -> Any:
        return self.hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=text.encode(errors="surrogateescape"))

    def _large(self, name: str, receipt: Mapping[str, Any], file: io.BufferedIOBase) -> Any:
        """Return the operation that adds a file whose content is known, which saves reading it once more."""
        operation = self.hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=io.BytesIO())
        operation.upload_info, operation.path_or_fileobj = self._info(receipt), file
        return operation

    def _info(self, receipt: Mapping[str, Any]) -> Any:
        sample, sha256 = base64.b64decode(receipt["sample"]), bytes.fromhex(receipt["sha256"])
        return self.hub.lfs.UploadInfo(sha256=sha256, size=receipt["size"], sample=sample)

    def asked(
        self, question: Callable[[], Any], seconds: float | None = None, reached: Callable[[], int] = lambda: 0
    ) -> Any:
        """Return an answer of the hub, asked again where that may help; a sentence for any error.

        An attempt that has `reached` more than all before may have taken hours: patience begins anew at its end.
        """
        patience, before = Patience(self.called, seconds, "the upload failed"), reached()
        while True:
            try:
                with self._quietly():
                    return question()
            except (GgufMlaError, StoppedError):
                raise
            except (OSError, ValueError, RuntimeError, http().HTTPError, http().InvalidURL) as error:
                self._journey.check()
                if reached() > before:
                    patience.renew()
                    before = reached()
                patience.wait(refusals.trouble(error, self.called, self.api.endpoint, self._error))

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        """Let the library say nothing of attempts and of how it sends, and draw no bars: we have our own words."""
        utils = self.hub.utils
        before, bars = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
        utils.logging.set_verbosity_error()
        if bars:
            utils.disable_progress_bars()
        try:
            yield
        finally:
            utils.logging.set_verbosity(before)
            if bars:
                utils.enable_progress_bars()
